//! What can be wrong with a call: which argument, what was expected, what came.

use thiserror::Error;

/// A refused argument. Every check comes before the first write: whoever gets an error finds
/// nothing changed.
///
/// ```
/// use rustbn::Affine;
/// let error = Affine::new(vec![0.0; 3], vec![1.0; 2], vec![0.0; 3]).unwrap_err();
/// assert_eq!(error.to_string(), "scale must have shape (3,), one value per channel, got (2,)");
/// assert_eq!(error.kind(), "Length");
/// ```
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Error {
    /// The input has too few dimensions.
    #[error("{argument} must have {expected}, got {got}")]
    Rank {
        /// The argument's name.
        argument: &'static str,
        /// What would be right.
        expected: &'static str,
        /// The dimensions that came.
        got: usize,
    },
    /// The channel axis is not an axis of the input.
    #[error("axis {axis} is out of bounds for x of dimension {ndim}")]
    Axis {
        /// The axis that came.
        axis: isize,
        /// The dimensions of the input.
        ndim: usize,
    },
    /// A vector that is not one value a channel.
    #[error("{argument} must have shape ({expected},), one value per channel, got {got}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// The channels of the input.
        expected: usize,
        /// The shape that came.
        got: String,
    },
    /// An array, or a memory order, that does not fit the input.
    #[error("{argument} must have shape {expected}, got {got}")]
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// The shape of the input.
        expected: String,
        /// The shape that came.
        got: String,
    },
    /// An array whose elements have the wrong type.
    #[error("{argument} must have dtype {expected}, got {got}")]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// The types that would be right.
        expected: String,
        /// The type that came.
        got: String,
    },
    /// Something that is not the kind of object the argument takes.
    #[error("{argument} must be {expected}, got {got}")]
    Kind {
        /// The argument's name.
        argument: &'static str,
        /// What would be right.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// An array to be written that may not be.
    #[error("{argument} must be writeable, got a read-only array")]
    ReadOnly {
        /// The argument's name.
        argument: &'static str,
    },
    /// An array to be written that shares memory with another one of the call.
    #[error("{argument} must {expected}, got memory shared with {got}")]
    Overlap {
        /// The argument's name.
        argument: &'static str,
        /// What would be right.
        expected: String,
        /// The other argument's name.
        got: &'static str,
    },
    /// A scalar out of its range: eps, a number of threads, a count.
    #[error("{argument} must be {expected}, got {got}")]
    Range {
        /// The argument's name.
        argument: &'static str,
        /// The range.
        expected: &'static str,
        /// The value that came.
        got: String,
    },
    /// Batch statistics of fewer than two values.
    #[error("{argument} must hold at least 2 values per channel for {purpose}, got {got}")]
    TooFewValues {
        /// The argument's name.
        argument: &'static str,
        /// What needs the values.
        purpose: &'static str,
        /// The values per channel that came.
        got: u64,
    },
    /// Running statistics that are needed and were not given.
    #[error("{argument} must be given {when}, got None")]
    Missing {
        /// The argument's name.
        argument: &'static str,
        /// When it is needed.
        when: &'static str,
    },
    /// An instruction set that this processor does not have.
    #[error("RUSTBN_SIMD must be one of {expected} on this machine, got {got:?}")]
    Simd {
        /// The names that would be right.
        expected: String,
        /// The name that came.
        got: String,
    },
}

impl Error {
    /// Refuses a vector of another length than `expected`.
    pub(crate) fn check_length(
        argument: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), Error> {
        if got == expected {
            return Ok(());
        }
        Err(Error::Length { argument, expected, got: format!("({got},)") })
    }
}

macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        impl Error {
            /// The names of all kinds of error.
            pub const KINDS: &'static [&'static str] = &[$(stringify!($kind)),+];

            /// The name of this kind of error.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Error::$kind { .. } => stringify!($kind),)+
                }
            }
        }
    };
}
// A variant that is missing here does not compile: the match above would not be exhaustive.
kinds!(
    Rank,
    Axis,
    Length,
    Shape,
    DType,
    Kind,
    ReadOnly,
    Overlap,
    Range,
    TooFewValues,
    Missing,
    Simd,
);
