//! "Did you mean …?": the known word nearest to a mistyped one.

/// The word of `known` that was probably meant by `typed`, if any is near enough.
pub(super) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&typed, word), *word))
        .filter(|(distance, word)| *distance <= slack(word))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Edits that still count as a slip: a third of the word, for in a short word two wrong letters are another word.
fn slack(word: &str) -> usize {
    word.len() / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_leaves_strangers_alone() {
        let known = ["url", "weight", "slots", "max_kv_cache", "llama-cpp"];
        for (typed, meant) in [
            ("ulr", Some("url")),
            ("Weight", Some("weight")),
            ("slot", Some("slots")),
            ("max-kv-cache", Some("max_kv_cache")),
            ("llama.cpp", Some("llama-cpp")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, &known), meant, "{typed:?}");
        }
    }
}
