//! Memory for large outputs: blocks that are kept when they are freed, and handed out again.
//!
//! The system zeroes memory page by page as it is first touched, which takes as long as the batch
//! norm that then fills it: 22 ms instead of 12 for a training forward of 100 MB. Blocks that have
//! been touched before cost nothing.
//!
//! # Blocks
//! Capacities come eight to the octave, so a block is less than 1/8 larger than what was asked for.
//! Blocks of at least [`LARGE`] bytes are mapped from the system one by one, so that releasing one
//! returns its pages whatever else is alive; from [`HUGE`] bytes they start at a huge page. Smaller
//! ones exist because NumPy may ask for any size where it may ask at all; they come from Rust's
//! allocator and are never kept. Each block knows its own capacity: nobody is asked for it.
//!
//! # Kept blocks
//! The blocks that are kept stand in a ring of words in the order in which they were freed. The one
//! freed last is handed out first, as it may still be in the cache. When there are more bytes than
//! the limit allows those freed first are released, so that the ring follows a program whose shapes
//! change; a block larger than the limit is not kept at all.
//!
//! # No lock
//! A word of the ring is 0 or one block: its address, and its capacity in the bits that alignment
//! leaves free. Whoever exchanges it for something else owns the block, and nobody looks at the
//! memory of a block that he does not own. So no block is handed out twice, and there is nothing
//! that `fork` could leave locked or half done: it finds every block either in the ring or with its
//! owner. A child inherits what is in the ring as memory of its own. What another thread of the
//! parent was about to hand out or to put back at that moment has no owner in the child, and is
//! lost to it.

use crate::error::Error;
use std::alloc::{Layout, alloc, dealloc};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Bytes from which blocks are kept.
///
/// Microseconds of a call into NumPy's memory and into kept blocks (Zen 3, one thread): with 32
/// outputs alive at once 68 and 4.6 at 128 KiB, 160 and 11 at 256 KiB, 700 and 70 at 1 MiB; with
/// one alive at a time, which the C library hands out again by itself, 4.3 and 4.6, 9.3 and 9.7, 40
/// and 40. Below, the handler would be felt.
pub(crate) const LARGE: usize = 128 << 10;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes in front of a large block, the last of which are its header: pages are no larger anywhere.
const LEAD: usize = 64 << 10;

/// Where small blocks start: a cache line.
const LINE: usize = size_of::<Header>();

/// Capacities of an octave, as a power of two.
const FINENESS: u32 = 3;

/// Blocks that are kept at most. Several times the layers of deep networks: a block that is used
/// once in each training step must survive a step.
const SLOTS: usize = 2048;

/// The bits of a word that hold a [`class`]; the address of a large block has none of them.
const TAG: usize = ((usize::BITS as usize) << FINENESS) - 1;

/// What is known of a block, just in front of it.
#[repr(C, align(64))]
struct Header {
    capacity: usize,
}

/// The capacity of a block for `size` bytes, or `None` if that is more than memory can have.
fn capacity(size: usize) -> Option<usize> {
    // Leaves room for what goes around a block.
    if size > isize::MAX as usize / 2 {
        return None;
    }
    let unit = if size < LARGE { LINE } else { 1 << (size.ilog2() - FINENESS) };
    Some(size.max(1).next_multiple_of(unit))
}

/// The number of the capacity of a large block: its octave, and where in the octave it is.
fn class(capacity: usize) -> usize {
    let octave = capacity.ilog2();
    let part = (capacity >> (octave - FINENESS)) & ((1 << FINENESS) - 1);
    (octave as usize) << FINENESS | part
}

/// The capacity that [`class`] numbers.
fn capacity_of(class: usize) -> usize {
    let (octave, part) = (class >> FINENESS, class & ((1 << FINENESS) - 1));
    ((1 << FINENESS) + part) << (octave - FINENESS as usize)
}

/// A block that nobody else has.
struct Block {
    data: NonNull<u8>,
    capacity: usize,
}

impl Block {
    /// A new block, or `None` where the system has no memory.
    fn new(capacity: usize) -> Option<Block> {
        let data = if capacity < LARGE {
            // SAFETY: the size of the layout is not 0.
            let start = NonNull::new(unsafe { alloc(Self::small_layout(capacity)) })?;
            // SAFETY: the header is part of the layout.
            unsafe { start.add(LINE) }
        } else {
            system::map(capacity)?
        };
        // SAFETY: in front of `data` there are LINE bytes or more that are part of the allocation,
        // and `data` is aligned for a header, whose size is its alignment.
        unsafe { data.cast::<Header>().sub(1).write(Header { capacity }) };
        Some(Block { data, capacity })
    }

    /// The block that starts at `data`.
    ///
    /// # Safety
    /// [`Self::into_data`] gave `data`, and only this call takes it back.
    unsafe fn from_data(data: NonNull<u8>) -> Block {
        // SAFETY: `new` wrote the header.
        let Header { capacity } = unsafe { data.cast::<Header>().sub(1).read() };
        Block { data, capacity }
    }

    fn into_data(self) -> NonNull<u8> {
        self.data
    }

    fn is_large(&self) -> bool {
        self.capacity >= LARGE
    }

    /// The word that stands for a large block in the ring.
    fn into_word(self) -> *mut u8 {
        self.data.as_ptr().map_addr(|address| address | class(self.capacity))
    }

    /// The block that a word stands for, if any.
    ///
    /// # Safety
    /// The word was in the ring, and the caller took it out.
    unsafe fn from_word(word: *mut u8) -> Option<Block> {
        let data = NonNull::new(word.map_addr(|address| address & !TAG))?;
        Some(Block { data, capacity: capacity_of(word.addr() & TAG) })
    }

    /// Returns the memory to where it came from.
    fn release(self) {
        if self.is_large() {
            // SAFETY: `new` mapped this capacity at `data`, and the block is nobody else's.
            unsafe { system::unmap(self.data, self.capacity) };
        } else {
            // SAFETY: `new` allocated this layout, which starts at the header.
            unsafe {
                dealloc(self.data.as_ptr().sub(LINE), Self::small_layout(self.capacity));
            }
        }
    }

    fn small_layout(capacity: usize) -> Layout {
        Layout::from_size_align(LINE + capacity, LINE).expect("small")
    }
}

/// Blocks that are kept.
pub(crate) struct Cache {
    /// The ring.
    slots: [AtomicPtr<u8>; SLOTS],
    /// Where the next block goes, counted on and on; before it is the block freed last, at it the
    /// one freed first.
    next: AtomicUsize,
    /// Bytes that are kept, or more: added before a block is put in, subtracted after one is taken
    /// out. What `fork` interrupts makes it too large in the child, which then counts more often
    /// than it must.
    bound: AtomicUsize,
}

impl Cache {
    /// A cache without blocks.
    pub(crate) const fn new() -> Cache {
        Cache {
            slots: [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS],
            next: AtomicUsize::new(0),
            bound: AtomicUsize::new(0),
        }
    }

    /// `size` bytes of whatever values, at a cache line at least; `None` where there is no memory
    /// left.
    pub(crate) fn allocate(&self, size: usize) -> Option<NonNull<u8>> {
        let capacity = capacity(size)?;
        let kept = if capacity < LARGE { None } else { self.take(capacity) };
        let block = kept.or_else(|| Block::new(capacity)).or_else(|| {
            // What is kept may be what is missing.
            self.empty();
            Block::new(capacity)
        });
        block.map(Block::into_data)
    }

    /// Takes back what was allocated, to keep no more than `limit` bytes.
    ///
    /// # Safety
    /// `data` comes from this cache, and nobody uses it any more.
    pub(crate) unsafe fn free(&self, data: NonNull<u8>, limit: usize) {
        // SAFETY: as the caller promises.
        let block = unsafe { Block::from_data(data) };
        if block.is_large() && block.capacity <= limit {
            self.keep(block, limit);
        } else {
            block.release();
        }
    }

    /// Memory of another size with the same first bytes, as `realloc` does: where there is none,
    /// `data` stays as it is.
    ///
    /// # Safety
    /// `data` comes from this cache, and nobody uses it any more unless the answer is `None`.
    pub(crate) unsafe fn reallocate(
        &self,
        data: NonNull<u8>,
        size: usize,
        limit: usize,
    ) -> Option<NonNull<u8>> {
        // SAFETY: as the caller promises; the block is given up by `into_data` or not used.
        let old = unsafe { Block::from_data(data) }.capacity;
        if capacity(size)? == old {
            return Some(data);
        }
        let new = self.allocate(size)?;
        // SAFETY: both blocks are as large, and apart.
        unsafe {
            ptr::copy_nonoverlapping(data.as_ptr(), new.as_ptr(), size.min(old));
            self.free(data, limit);
        }
        Some(new)
    }

    /// Bytes that are kept.
    pub(crate) fn held(&self) -> usize {
        let words = self.slots.iter().map(|slot| slot.load(Ordering::SeqCst));
        words.filter(|word| !word.is_null()).map(|word| capacity_of(word.addr() & TAG)).sum()
    }

    /// Releases all that is kept.
    pub(crate) fn empty(&self) {
        self.evict(usize::MAX);
    }

    /// A kept block of this capacity, the last one freed.
    fn take(&self, capacity: usize) -> Option<Block> {
        let next = self.next.load(Ordering::Relaxed);
        for i in 1..=SLOTS {
            let slot = &self.slots[next.wrapping_sub(i) % SLOTS];
            let word = slot.load(Ordering::Relaxed);
            if word.is_null() || word.addr() & TAG != class(capacity) {
                continue;
            }
            // The word says all: if it is still there it stands for a block of this capacity,
            // whoever put it there.
            let taken =
                slot.compare_exchange(word, ptr::null_mut(), Ordering::SeqCst, Ordering::Relaxed);
            if let Ok(word) = taken {
                self.bound.fetch_sub(capacity, Ordering::SeqCst);
                // SAFETY: the word was just taken out.
                return unsafe { Block::from_word(word) };
            }
        }
        None
    }

    /// Puts a large block into the ring, and releases what is too much.
    ///
    /// When all calls have returned no more than `limit` is kept: the last one to put its block in
    /// looked after all others had put theirs in.
    fn keep(&self, block: Block, limit: usize) {
        self.bound.fetch_add(block.capacity, Ordering::SeqCst);
        let next = self.next.fetch_add(1, Ordering::SeqCst);
        self.replace(next, block.into_word());
        if self.bound.load(Ordering::SeqCst) > limit {
            self.evict(self.held().saturating_sub(limit));
        }
    }

    /// Releases at least this many bytes of what was freed first, or all there is.
    fn evict(&self, bytes: usize) {
        let next = self.next.load(Ordering::SeqCst);
        let mut released = 0;
        for i in 0..SLOTS {
            if released >= bytes {
                return;
            }
            released += self.replace(next.wrapping_add(i), ptr::null_mut());
        }
    }

    /// Writes a word into the ring and releases the block that was there; gives the bytes released.
    fn replace(&self, place: usize, word: *mut u8) -> usize {
        let before = self.slots[place % SLOTS].swap(word, Ordering::SeqCst);
        // SAFETY: the word was just taken out.
        let Some(block) = (unsafe { Block::from_word(before) }) else {
            return 0;
        };
        let bytes = block.capacity;
        block.release();
        self.bound.fetch_sub(bytes, Ordering::SeqCst);
        bytes
    }
}

/// Bytes that may be kept: what `RUSTBN_CACHE_BYTES` says, else a quarter of the memory that this
/// process may have.
///
/// # Errors
/// [`Error::Range`] if `RUSTBN_CACHE_BYTES` is not a whole number of bytes.
pub(crate) fn limit() -> Result<usize, Error> {
    // Not a lock, for the sake of `fork`; several threads may find out the same.
    static LIMIT: AtomicUsize = AtomicUsize::new(UNKNOWN);
    const UNKNOWN: usize = usize::MAX;
    match LIMIT.load(Ordering::Relaxed) {
        UNKNOWN => {
            let limit = limit_from(std::env::var("RUSTBN_CACHE_BYTES").ok().as_deref())?;
            LIMIT.store(limit, Ordering::Relaxed);
            Ok(limit)
        }
        limit => Ok(limit),
    }
}

fn limit_from(variable: Option<&str>) -> Result<usize, Error> {
    match variable.map(str::trim) {
        None | Some("") => Ok(memory().unwrap_or(4 << 30) / 4),
        Some(text) => text.parse().map_err(|_| Error::Range {
            argument: "RUSTBN_CACHE_BYTES",
            expected: "a whole number of bytes, 0 to keep none",
            got: format!("{text:?}"),
        }),
    }
}

/// Bytes of memory of this machine, or of this process's control group where that is less, if the
/// system says.
fn memory() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let physical = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim_end().parse::<usize>().ok()?.checked_mul(1 << 10)
    });
    // A group's limit holds for the groups within it. (Version 2; version 1 as containers see it.)
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let limits = std::path::Path::new(group)
        .ancestors()
        .map(|group| format!("/sys/fs/cgroup{}/memory.max", group.display()))
        .chain(["/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()])
        .filter_map(|path| read(&path)?.trim().parse::<usize>().ok());
    limits.chain(physical).min()
}

/// Large blocks from the system, where its calls are known.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod system {
    use super::{HUGE, LEAD};
    use std::ffi::{c_int, c_void};
    use std::ptr::{self, NonNull};

    // SAFETY: these are the declarations of <sys/mman.h> for 64-bit Linux, whatever the C library.
    unsafe extern "C" {
        fn mmap(
            address: *mut c_void,
            length: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            offset: i64,
        ) -> *mut c_void;
        fn munmap(address: *mut c_void, length: usize) -> c_int;
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }

    const PROT_READ_WRITE: c_int = 1 | 2;
    const MAP_PRIVATE_ANONYMOUS: c_int = 0x02 | 0x20;
    const MAP_FAILED: usize = usize::MAX;
    const MADV_HUGEPAGE: c_int = 14;

    /// Bytes of the mapping of a block.
    fn length(capacity: usize) -> usize {
        LEAD + capacity.next_multiple_of(LEAD)
    }

    /// `capacity` bytes at a multiple of LEAD, and of HUGE if there are as many, with LEAD bytes
    /// before them.
    pub(super) fn map(capacity: usize) -> Option<NonNull<u8>> {
        let align = if capacity < HUGE { LEAD } else { HUGE };
        let (length, room) = (length(capacity), length(capacity) + align);
        // SAFETY: a new mapping touches nothing that exists. All but the `length` bytes around the
        // aligned address are given back: both ends are multiples of a page, since LEAD is. Advice
        // changes no contents.
        unsafe {
            let start = mmap(ptr::null_mut(), room, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
            if start.addr() == MAP_FAILED {
                return None;
            }
            let before = (start.addr() + LEAD).next_multiple_of(align) - LEAD - start.addr();
            let first = start.byte_add(before);
            if before > 0 {
                munmap(start, before);
            }
            if before < align {
                munmap(first.byte_add(length), align - before);
            }
            if capacity >= HUGE {
                // Where there are no huge pages there are others.
                let _ = madvise(first, length, MADV_HUGEPAGE);
            }
            NonNull::new(first.byte_add(LEAD).cast())
        }
    }

    /// Gives back what `map` gave.
    ///
    /// # Safety
    /// `data` comes from `map` with this capacity, and nobody uses it any more.
    pub(super) unsafe fn unmap(data: NonNull<u8>, capacity: usize) {
        // SAFETY: this is the mapping that `map` left, and nobody uses it.
        unsafe { munmap(data.as_ptr().sub(LEAD).cast(), length(capacity)) };
    }
}

/// The same from Rust's allocator.
#[cfg(any(
    test,
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))
))]
mod portable {
    use super::LEAD;
    use std::alloc::{Layout, alloc, dealloc};
    use std::ptr::NonNull;

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(LEAD + capacity, LEAD).expect("`capacity` left room")
    }

    /// `capacity` bytes at a multiple of LEAD, with LEAD bytes before them.
    pub(super) fn map(capacity: usize) -> Option<NonNull<u8>> {
        // SAFETY: the size of the layout is not 0, and `data` is within it.
        unsafe { Some(NonNull::new(alloc(layout(capacity)))?.add(LEAD)) }
    }

    /// Gives back what `map` gave.
    ///
    /// # Safety
    /// `data` comes from `map` with this capacity, and nobody uses it any more.
    pub(super) unsafe fn unmap(data: NonNull<u8>, capacity: usize) {
        // SAFETY: this is what `map` allocated, and nobody uses it.
        unsafe { dealloc(data.as_ptr().sub(LEAD), layout(capacity)) };
    }
}
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
use portable as system;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn allocate(cache: &Cache, size: usize) -> NonNull<u8> {
        cache.allocate(size).expect("memory")
    }

    fn free(cache: &Cache, data: NonNull<u8>, limit: usize) {
        // SAFETY: the tests free what they allocated, once.
        unsafe { cache.free(data, limit) }
    }

    fn fill(data: NonNull<u8>, size: usize, value: u8) {
        // SAFETY: the block is as large, and the test's own.
        unsafe { data.write_bytes(value, size) }
    }

    fn bytes<'a>(data: NonNull<u8>, size: usize) -> &'a [u8] {
        // SAFETY: the block is as large, the test's own, and was filled.
        unsafe { std::slice::from_raw_parts(data.as_ptr(), size) }
    }

    #[test]
    fn little_is_wasted() {
        let mut size = 1;
        while size < 1 << 40 {
            for size in [size - 1, size, size + 1] {
                let capacity = capacity(size).unwrap();
                assert!(capacity >= size && capacity.is_multiple_of(LINE), "{size}");
                if size >= LARGE {
                    assert!(capacity - size < size / 8, "{size}");
                    assert_eq!(capacity_of(class(capacity)), capacity);
                    assert!(class(capacity) <= TAG);
                } else {
                    assert!(capacity - size <= LINE, "{size}");
                }
            }
            size = size * 9 / 8 + 1;
        }
        assert_eq!(capacity(usize::MAX), None);
        assert_eq!(capacity(isize::MAX as usize), None);
        assert!(Cache::new().allocate(usize::MAX / 4).is_none());
    }

    #[test]
    fn blocks_are_aligned_and_whole() {
        let cache = Cache::new();
        for size in [0, 1, 100, LARGE - 1, LARGE, LARGE + 1, HUGE, 5 << 20, 33 << 20] {
            let data = allocate(&cache, size);
            let align = if size >= HUGE {
                HUGE
            } else if size >= LARGE {
                LEAD
            } else {
                LINE
            };
            if cfg!(target_os = "linux") {
                assert_eq!(data.addr().get() % align, 0, "{size}");
            }
            assert_eq!(data.addr().get() % LINE, 0, "{size}");
            fill(data, capacity(size).unwrap(), 7);
            free(&cache, data, usize::MAX);
        }
        cache.empty();
    }

    #[test]
    fn the_block_freed_last_comes_back() {
        let cache = Cache::new();
        let (a, b) = (allocate(&cache, LARGE), allocate(&cache, LARGE));
        let other = allocate(&cache, 2 * LARGE);
        for data in [a, b, other] {
            free(&cache, data, usize::MAX);
        }
        assert_eq!(cache.held(), 4 * LARGE);
        assert_eq!(allocate(&cache, LARGE), b);
        assert_eq!(allocate(&cache, LARGE), a);
        assert_eq!(cache.held(), 2 * LARGE);
        for data in [a, b] {
            free(&cache, data, 0);
        }
        cache.empty();
        assert_eq!(cache.held(), 0);
    }

    #[test]
    fn what_was_freed_first_makes_room() {
        let cache = Cache::new();
        let blocks: Vec<_> = (0..5).map(|_| allocate(&cache, LARGE)).collect();
        let large = allocate(&cache, 4 * LARGE);
        for &data in &blocks {
            free(&cache, data, 3 * LARGE);
            assert!(cache.held() <= 3 * LARGE);
        }
        free(&cache, large, 3 * LARGE); // too large to be kept, and no reason to release others
        let kept: Vec<_> = (0..3).map(|_| allocate(&cache, LARGE)).collect();
        assert_eq!(kept, [blocks[4], blocks[3], blocks[2]]);
        for data in kept {
            free(&cache, data, 0);
        }
        assert_eq!(cache.held(), 0);
    }

    #[test]
    fn the_ring_goes_round() {
        let cache = Cache::new();
        let old = allocate(&cache, 2 * LARGE);
        free(&cache, old, usize::MAX);
        for _ in 0..SLOTS {
            let data = allocate(&cache, LARGE);
            free(&cache, data, usize::MAX);
        }
        assert_eq!(cache.held(), LARGE, "nobody wanted the other block for a whole round");
        cache.empty();
    }

    #[test]
    fn another_size_has_the_same_first_bytes() {
        let cache = Cache::new();
        let mut data = allocate(&cache, 10);
        fill(data, 10, 9);
        let mut least = 10;
        for size in
            [10, 63, 500, LARGE, LARGE + 1, 3 * LARGE, 3 * LARGE - 5, 20 << 20, LARGE, 100, 5]
        {
            // SAFETY: the data is used no more.
            data = unsafe { cache.reallocate(data, size, usize::MAX) }.expect("memory");
            least = least.min(size);
            assert!(bytes(data, least).iter().all(|&byte| byte == 9), "{size}");
        }
        // SAFETY: as above; where there is no memory the data stays.
        assert!(unsafe { cache.reallocate(data, usize::MAX / 4, usize::MAX) }.is_none());
        assert_eq!(bytes(data, least), [9; 5]);
        free(&cache, data, 0);
        cache.empty();
    }

    #[test]
    fn no_block_is_handed_out_twice() {
        let (cache, limit) = (Cache::new(), 6 * LARGE);
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let cache = &cache;
                scope.spawn(move || {
                    let mut mine: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
                    for i in 0..3000_usize {
                        let value = thread * 64 + (i % 64) as u8;
                        let size = LARGE + i * 7919 % 3 * (LARGE / 8);
                        let data = allocate(cache, size);
                        for place in (0..size).step_by(4096) {
                            // SAFETY: within the block, which is this thread's.
                            unsafe { data.add(place).write(value) };
                        }
                        mine.push((data, size, value));
                        if mine.len() > 3 {
                            let (data, size, value) = mine.swap_remove(i % 4);
                            for place in (0..size).step_by(4096) {
                                // SAFETY: as above.
                                assert_eq!(unsafe { data.add(place).read() }, value);
                            }
                            free(cache, data, limit);
                        }
                    }
                    let places: HashSet<_> = mine.iter().map(|(data, ..)| data.addr()).collect();
                    assert_eq!(places.len(), mine.len());
                    mine.into_iter().for_each(|(data, ..)| free(cache, data, limit));
                });
            }
        });
        assert!(cache.held() <= limit);
        cache.empty();
        assert_eq!(cache.held(), 0);
    }

    #[test]
    fn the_portable_source() {
        for capacity in [LARGE, 5 * LARGE] {
            let data = portable::map(capacity).expect("memory");
            assert_eq!(data.addr().get() % LEAD, 0);
            // SAFETY: the block and the room before it are the test's own.
            unsafe { data.sub(LEAD).write_bytes(1, LEAD + capacity) };
            // SAFETY: it was mapped with this capacity.
            unsafe { portable::unmap(data, capacity) };
        }
    }

    #[test]
    fn the_variable() {
        assert_eq!(limit_from(Some(" 12345 ")), Ok(12345));
        assert_eq!(limit_from(Some("0")), Ok(0));
        assert!(limit_from(None).unwrap() > 0);
        assert_eq!(limit(), limit());
        for bad in ["-1", "two", "1.5", "1G", "99999999999999999999999"] {
            assert!(matches!(limit_from(Some(bad)), Err(Error::Range { .. })), "{bad}");
        }
    }
}
