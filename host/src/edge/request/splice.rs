//! Puts another model name into a body without copying the body.
//!
//! Invariant: the chunks handed on are slices of the memory that came in; nothing is new but the replacement.

use std::ops::Range;

use bytes::Bytes;

/// The chunks with the bytes of `range` (counted over all of them) replaced, and their total length.
/// A range that reaches past the end is cut there. No chunk that comes out is empty.
pub fn splice(chunks: &[Bytes], range: Range<usize>, replacement: Bytes) -> (Vec<Bytes>, usize) {
    let mut out = Vec::with_capacity(chunks.len() + 2);
    let mut len = 0;
    let mut push = |chunk: Bytes| {
        if !chunk.is_empty() {
            len += chunk.len();
            out.push(chunk);
        }
    };
    let mut replacement = Some(replacement);
    let mut start = 0;
    for chunk in chunks {
        let end = start + chunk.len();
        let cut = range.start.clamp(start, end)..range.end.max(range.start).clamp(start, end);
        push(chunk.slice(..cut.start - start));
        if range.start < end {
            push(replacement.take().unwrap_or_default());
        }
        push(chunk.slice(cut.end - start..));
        start = end;
    }
    push(replacement.unwrap_or_default());
    (out, len)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn equals_a_copy_with_the_range_replaced() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..3_000 {
            let body: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect();
            let shared = Bytes::from(body.clone());
            let mut chunks = Vec::new();
            let mut at = 0;
            while at < body.len() {
                let end = rng.usize(at..=body.len().min(at + 9));
                chunks.push(shared.slice(at..end));
                at = end;
            }
            let start = rng.usize(..=body.len());
            let range = start..rng.usize(start..=body.len());
            let new = Bytes::from(vec![b'n'; rng.usize(..4)]);

            let (out, len) = splice(&chunks, range.clone(), new.clone());
            let mut expected = body.clone();
            expected.splice(range, new.iter().copied());
            assert_eq!(out.concat(), expected);
            assert_eq!(len, expected.len());
            assert!(out.iter().all(|chunk| !chunk.is_empty()));

            let memory = |bytes: &[u8]| bytes.as_ptr_range();
            let (old, new) = (memory(&shared), memory(&new));
            for chunk in out.iter().map(|chunk| memory(chunk)) {
                assert!(
                    [&old, &new].iter().any(|range| range.start <= chunk.start && chunk.end <= range.end),
                    "copied"
                );
            }
        }
    }

    #[test]
    fn a_range_past_the_end_is_cut() {
        let chunks = [Bytes::from_static(b"ab"), Bytes::from_static(b"cd")];
        assert_eq!(splice(&chunks, 3..9, Bytes::from_static(b"x")).0.concat(), b"abcx");
        assert_eq!(splice(&chunks, 8..9, Bytes::from_static(b"x")).0.concat(), b"abcdx");
        assert_eq!(splice(&[], 0..0, Bytes::from_static(b"x")), (vec![Bytes::from_static(b"x")], 1));
    }
}
