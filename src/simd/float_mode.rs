//! The processor's floating-point mode of a thread.
//!
//! Programs change it: `torch.set_flush_denormal(True)` and libraries built with `-ffast-math` make
//! the calling thread flush subnormals to zero, while threads that were there before do not.
//! Results must not depend on either, so the standard mode holds while a kernel runs, and wherever else this crate computes
//! or rounds numbers of an argument or a result. (What the Python modules compute with NumPy is in the caller's mode.)

use core::arch::asm;

/// The mode that was found, put back when this goes out of scope.
pub(crate) struct FloatMode {
    found: Option<Register>,
}

#[cfg(target_arch = "x86_64")]
type Register = u32;
#[cfg(target_arch = "aarch64")]
type Register = u64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Register = u8;

/// MXCSR: round to nearest, subnormals kept, all exceptions masked.
#[cfg(target_arch = "x86_64")]
const STANDARD: Register = 0x1f80;
/// The bits of MXCSR that only remember exceptions.
#[cfg(target_arch = "x86_64")]
const IGNORED: Register = 0x3f;

/// FPCR: round to nearest, subnormals kept, no traps.
#[cfg(not(target_arch = "x86_64"))]
const STANDARD: Register = 0;
#[cfg(not(target_arch = "x86_64"))]
const IGNORED: Register = 0;

impl FloatMode {
    /// Sets the standard mode.
    #[inline(always)]
    pub(crate) fn standard() -> FloatMode {
        let mode = read();
        if mode & !IGNORED == STANDARD {
            return FloatMode { found: None };
        }
        write(STANDARD);
        FloatMode { found: Some(mode) }
    }
}

impl Drop for FloatMode {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(mode) = self.found {
            write(mode);
        }
    }
}

#[inline(always)]
fn read() -> Register {
    let mut mode = STANDARD;
    // SAFETY: writes the register to `mode` and touches nothing else.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack, preserves_flags));
    }
    mode
}

#[inline(always)]
fn write(mode: Register) {
    // SAFETY: the value is the standard one or was read from this thread's register. What the
    // compiler assumes of the mode is the standard one; this is how it gets it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, preserves_flags));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("msr fpcr, {}", in(reg) mode, options(nostack, preserves_flags));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_standard_inside_and_as_it_was_outside() {
        // Flush to zero, subnormals are zero.
        let flushing = STANDARD | 0x8040;
        let before = read();
        write(flushing);
        {
            let _mode = FloatMode::standard();
            assert_eq!(read() & !IGNORED, STANDARD);
        }
        assert_eq!(read() & !IGNORED, flushing);
        write(before);
    }
}
