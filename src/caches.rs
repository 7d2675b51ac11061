//! Sizes of the processor's caches, which decide how work is walked and never what comes out.

use crate::error::Error;
use std::sync::OnceLock;

/// Bytes of the caches that one core uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caches {
    /// Of the second level, a core's own.
    pub l2: usize,
    /// Of the last level, which cores share.
    pub last: usize,
}

/// What is assumed where the system says nothing.
const ASSUMED: Caches = Caches { l2: 512 << 10, last: 8 << 20 };

/// The environment variable that sets both sizes.
const VARIABLE: &str = "RUSTBN_CPU_CACHES";

impl Caches {
    /// The caches that this process plans for: what `RUSTBN_CPU_CACHES` says (`"524288,33554432"`,
    /// say: bytes of the second and of the last level), else what Linux says of the machine. Either
    /// is clamped, to 256 KiB and 4 MiB and to 2 MiB and 64 MiB, for virtual machines report the
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

    fn clamped(self) -> Caches {
        Caches { l2: self.l2.clamp(256 << 10, 4 << 20), last: self.last.clamp(2 << 20, 64 << 20) }
    }
}

fn parsed(text: &str) -> Result<Caches, Error> {
    let size = |text: &str| text.trim().parse().ok().filter(|&bytes: &usize| bytes > 0);
    match text.split_once(',').map(|(l2, last)| (size(l2), size(last))) {
        Some((Some(l2), Some(last))) => Ok(Caches { l2, last }),
        _ => Err(Error::Range {
            argument: VARIABLE,
            expected: "two positive whole numbers, \"L2,last\" in bytes",
            got: format!("{text:?}"),
        }),
    }
}

/// What Linux says of the first processor.
fn detected() -> Caches {
    let mut caches = ASSUMED;
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
        assert_eq!(parsed("1048576, 8388608"), Ok(Caches { l2: 1 << 20, last: 8 << 20 }));
        let tiny = parsed("1,1").unwrap().clamped();
        assert_eq!(tiny, Caches { l2: 256 << 10, last: 2 << 20 });
        for wrong in ["", "1", "1,", "1,0", "-1,1", "1,2,3", "1M,8M"] {
            assert!(matches!(parsed(wrong), Err(Error::Range { .. })), "{wrong:?}");
        }
    }
}
