//! Sizes of the processor's caches, which decide how work is walked and never what comes out.

use crate::error::Error;
use crate::simd;
use std::sync::OnceLock;

/// Bytes of the caches that one core uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Of the second level, a core's own.
    pub l2: usize,
    /// Of the last level, which cores share.
    pub last: usize,
    /// Whether long runs that are asked for come while others are streamed out: see [`overlap`].
    pub(crate) overlap: bool,
}

/// Bytes of the last level that are counted on at most. What a virtual machine sees is that of a whole
/// socket: with 300 MiB on paper (Emerald Rapids), outputs of 6.4 MB took 1.6 of a copy through the
/// cache and 1.3 past it.
const MOST: usize = 32 << 20;

/// The environment variable that sets both sizes.
const VARIABLE: &str = "RUSTBN_CPU_CACHES";

impl Caches {
    /// The caches that this process plans for: what `RUSTBN_CPU_CACHES` says (`"524288,33554432"`,
    /// say: bytes of the second and of the last level), else what Linux says of the machine. Either
    /// is clamped, to 256 KiB and 4 MiB and to 2 MiB and 32 MiB, for virtual machines report the
    /// caches of whole sockets and sometimes nonsense. Read at the first call.
    ///
    /// # Errors
    /// [`Error::Range`] if `RUSTBN_CPU_CACHES` is not two positive whole numbers.
    pub fn current() -> Result<Caches, Error> {
        static CURRENT: OnceLock<Result<Caches, Error>> = OnceLock::new();
        CURRENT
            .get_or_init(|| match std::env::var(VARIABLE).ok().as_deref().map(str::trim) {
                None | Some("") => Ok(detected().clamped()),
                Some(text) => Ok(parsed(text)?.clamped()),
            })
            .clone()
    }

    /// Whether what lies in the last level comes little sooner than from memory: where the second is so large for want of a
    /// fast one behind it, 2 MiB on Emerald Rapids. Zen has 512 KiB or 1 MiB, and a fast one.
    pub(crate) fn last_is_slow(self) -> bool {
        self.l2 >= 1280 << 10
    }

    fn clamped(self) -> Caches {
        Caches {
            l2: self.l2.clamp(256 << 10, 4 << 20),
            last: self.last.clamp(2 << 20, MOST),
            ..self
        }
    }
}

/// Whether this processor gains by asking for the next long runs while it writes past the caches. Zen 3
/// does: forward over 32 planes of 56 x 56 took 1.1 of a copy without and 0.8 with. Emerald Rapids, whose
/// prefetchers need no help there, loses: 0.93 without and 0.98 with, backward 1.03 and 1.16.
fn overlap() -> bool {
    simd::made_by_amd()
}

fn parsed(text: &str) -> Result<Caches, Error> {
    let size = |text: &str| text.trim().parse().ok().filter(|&bytes: &usize| bytes > 0);
    match text.split_once(',').map(|(l2, last)| (size(l2), size(last))) {
        Some((Some(l2), Some(last))) => Ok(Caches { l2, last, overlap: overlap() }),
        _ => Err(Error::Range {
            argument: VARIABLE,
            expected: "two positive whole numbers, \"L2,last\" in bytes",
            got: format!("{text:?}"),
        }),
    }
}

/// What Linux says of the first processor, or modest sizes where it says nothing.
fn detected() -> Caches {
    let mut caches = Caches { l2: 512 << 10, last: 8 << 20, overlap: overlap() };
    for index in 0..8 {
        let read = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        let size = read("size").and_then(|text| text.strip_suffix('K')?.parse::<usize>().ok());
        match (read("level").as_deref(), size) {
            (Some("2"), Some(kib)) => caches.l2 = kib << 10,
            (Some("3"), Some(kib)) => caches.last = kib << 10,
            _ => {}
        }
    }
    caches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_of_bytes_within_reason() {
        let sizes = |caches: Caches| [caches.l2, caches.last];
        assert_eq!(parsed("1048576, 8388608").map(sizes), Ok([1 << 20, 8 << 20]));
        assert_eq!(sizes(parsed("1,1").unwrap().clamped()), [256 << 10, 2 << 20]);
        let socket = parsed("2097152,314572800").unwrap().clamped();
        assert_eq!(sizes(socket), [2 << 20, MOST]);
        for wrong in ["", "1", "1,", "1,0", "-1,1", "1,2,3", "1M,8M"] {
            assert!(matches!(parsed(wrong), Err(Error::Range { .. })), "{wrong:?}");
        }
    }
}
