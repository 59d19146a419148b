//! What is believed of an engine's numbers and words: the one place that tells sense from nonsense.
//!
//! Nonsense is unknown: NaN, negative, fractional or huge counts, fractions outside 0 to 1. A sum or maximum of
//! which one part is unknown is unknown as a whole, for the rest would look like a lighter load.

use serde_json::Value;

/// More requests than this are in no engine; a larger number is a counter gone wrong.
const COUNT_MAX: u32 = 1 << 31;

/// Rounding may carry a full cache a hair above 1: that is full, not nonsense.
const FULL_WITH_ROUNDING: f64 = 1.001;

/// The longest words kept from an answer, in bytes; a model's name is seldom longer than 100.
pub(super) const TEXT_MAX_BYTES: usize = 256;

/// A number of requests.
pub(super) fn count(number: f64) -> Option<u32> {
    let whole = (0.0..=f64::from(COUNT_MAX)).contains(&number) && number.fract() == 0.0;
    whole.then_some(number as u32)
}

/// A part of a whole, 0 to 1.
pub(super) fn fraction(number: f64) -> Option<f64> {
    (0.0..=FULL_WITH_ROUNDING).contains(&number).then_some(number.min(1.0))
}

/// A number of requests in JSON.
pub(super) fn json_count(value: &Value) -> Option<u32> {
    value.as_f64().and_then(count)
}

/// A part of a whole in JSON.
pub(super) fn json_fraction(value: &Value) -> Option<f64> {
    value.as_f64().and_then(fraction)
}

/// How many requests an engine takes at once. One that took none would be no engine.
pub(super) fn json_limit(value: &Value) -> Option<u32> {
    json_count(value).filter(|limit| *limit > 0)
}

/// All parts together; none at all is unknown too.
pub(super) fn total(mut parts: impl Iterator<Item = Option<u32>>) -> Option<u32> {
    let first = parts.next()??;
    parts.try_fold(first, |sum, part| sum.checked_add(part?).filter(|sum| *sum <= COUNT_MAX))
}

/// The largest part; none at all is unknown too.
pub(super) fn largest(mut parts: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let first = parts.next()??;
    parts.try_fold(first, |most, part| Some(most.max(part?)))
}

/// Whether words may be kept and shown: not empty, not long, nothing that moves a cursor.
pub(super) fn text(words: &str) -> bool {
    (1..=TEXT_MAX_BYTES).contains(&words.len()) && !words.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_in_range_are_counts() {
        for (number, read) in [
            (0.0, Some(0)),
            (-0.0, Some(0)),
            (3.0, Some(3)),
            (2_147_483_648.0, Some(2_147_483_648)),
            (2_147_483_649.0, None),
            (1e300, None),
            (3.5, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
            (f64::NEG_INFINITY, None),
        ] {
            assert_eq!(count(number), read, "{number}");
        }
    }

    #[test]
    fn fractions_forgive_rounding_and_nothing_else() {
        for (number, read) in [
            (0.0, Some(0.0)),
            (0.41, Some(0.41)),
            (1.0, Some(1.0)),
            (1.000_000_1, Some(1.0)),
            (1.01, None),
            (41.0, None),
            (-0.1, None),
            (f64::NAN, None),
        ] {
            assert_eq!(fraction(number), read, "{number}");
        }
    }

    #[test]
    fn one_unknown_part_makes_the_whole_unknown() {
        assert_eq!(total([Some(2), Some(3)].into_iter()), Some(5));
        assert_eq!(total([Some(2), None].into_iter()), None);
        assert_eq!(total([None, Some(2)].into_iter()), None);
        assert_eq!(total(std::iter::empty()), None);
        assert_eq!(total([Some(COUNT_MAX), Some(1)].into_iter()), None);
        assert_eq!(total([Some(u32::MAX), Some(1)].into_iter()), None);
        assert_eq!(largest([Some(0.2), Some(0.9), Some(0.5)].into_iter()), Some(0.9));
        assert_eq!(largest([Some(0.9), None].into_iter()), None);
        assert_eq!(largest(std::iter::empty()), None);
    }

    #[test]
    fn words_are_short_and_still() {
        assert!(text("Qwen/Qwen2.5-VL-7B-Instruct"));
        assert!(text(&"m".repeat(256)) && !text(&"m".repeat(257)));
        assert!(!text("") && !text("a\nb") && !text("\u{1b}[31m") && !text("nul\0") && !text("c1\u{9b}"));
    }
}
