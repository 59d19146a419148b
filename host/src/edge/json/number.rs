//! The grammar of numbers: which byte may follow which.
//!
//! Invariant: values are never computed, so that no number is too large; `1e400` is the backend's to judge.

/// How far a number is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    /// Nothing yet.
    Start,
    Minus,
    /// A leading zero: no digit may follow.
    Zero,
    Whole,
    Point,
    Fraction,
    /// `e`
    Mark,
    /// `e+` or `e-`
    Sign,
    Exponent,
}

impl Digits {
    /// Behind one more byte; `None` where the byte is no part of the number.
    #[inline]
    pub(super) fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Whole, b'0'..=b'9') | (Self::Start | Self::Minus, b'1'..=b'9') => Self::Whole,
            (Self::Fraction | Self::Point, b'0'..=b'9') => Self::Fraction,
            (Self::Exponent | Self::Sign | Self::Mark, b'0'..=b'9') => Self::Exponent,
            (Self::Start | Self::Minus, b'0') => Self::Zero,
            (Self::Start, b'-') => Self::Minus,
            (Self::Zero | Self::Whole, b'.') => Self::Point,
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') => Self::Mark,
            (Self::Mark, b'+' | b'-') => Self::Sign,
            _ => return None,
        })
    }

    /// Whether more digits change nothing: most of a number is read so.
    #[inline]
    pub(super) fn repeats(self) -> bool {
        matches!(self, Self::Whole | Self::Fraction | Self::Exponent)
    }

    /// Whether the number may end here.
    #[inline]
    pub(super) fn complete(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Exponent)
    }
}
