//! The numbers a policy may ask for, and where each stands in a row.

/// A number that a policy is given for each candidate. Those from `Running` to `AgeMs`, and `Loaded`, are the engine's word:
/// they may be wrong, old or unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Requests of this proxy at the backend now; exact.
    InFlight,
    /// Slots it leaves to this proxy now; at least 1.
    Slots,
    /// `Slots` less those taken; at least 1.
    Free,
    /// Slots taken × 1,000 / `Slots`.
    LoadPermille,
    /// The configured weight, 1 where none is given.
    Weight,
    /// Requests the engine says it runs.
    Running,
    /// Requests the engine says wait inside it.
    Waiting,
    /// KV-cache in use, as the engine says: 0 to 1,000.
    KvPermille,
    /// Age of the engine's report in milliseconds.
    AgeMs,
    /// Moving average of the time to the first byte of an answer in microseconds; unknown before the first answer.
    FirstTokenUs,
    /// Moving average of failed attempts: 0 to 1,000.
    ErrorsPermille,
    /// 1 where the backend has the model loaded, 0 where it would have to load it first, which may take minutes.
    Loaded,
}

impl Column {
    /// Every column, in the order of the interface.
    pub const ALL: [Self; 12] = [
        Self::InFlight,
        Self::Slots,
        Self::Free,
        Self::LoadPermille,
        Self::Weight,
        Self::Running,
        Self::Waiting,
        Self::KvPermille,
        Self::AgeMs,
        Self::FirstTokenUs,
        Self::ErrorsPermille,
        Self::Loaded,
    ];

    /// The name by which the interface knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in-flight",
            Self::Slots => "slots",
            Self::Free => "free",
            Self::LoadPermille => "load-permille",
            Self::Weight => "weight",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::KvPermille => "kv-permille",
            Self::AgeMs => "age-ms",
            Self::FirstTokenUs => "first-token-us",
            Self::ErrorsPermille => "errors-permille",
            Self::Loaded => "loaded",
        }
    }

    /// The number that stands for "nobody knows"; `None` for a column that is always known.
    #[inline]
    pub(crate) fn unknown(self) -> Option<u32> {
        match self {
            Self::Running | Self::Waiting | Self::KvPermille | Self::AgeMs | Self::Loaded => Some(u32::MAX),
            Self::FirstTokenUs => Some(0),
            Self::InFlight | Self::Slots | Self::Free | Self::LoadPermille | Self::Weight | Self::ErrorsPermille => {
                None
            }
        }
    }
}

/// Stands for the place of a column that was not asked for: beyond any row.
const ABSENT: usize = usize::MAX;

/// Where each column stands in a row: the index of the backend first, then the columns in the order they were asked
/// for. Constant for each policy, so that reading a column is one load.
pub(crate) const fn places(asked: &[Column]) -> [usize; Column::ALL.len()] {
    let mut places = [ABSENT; Column::ALL.len()];
    let mut index = 0;
    while index < asked.len() {
        places[asked[index] as usize] = index + 1;
        index += 1;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in the interface and this enum are two copies of one list.
    #[test]
    fn columns_are_those_of_the_interface() {
        let table: Vec<(&str, bool)> = include_str!("../../../wit/vision-proxy.wit")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("/// | `")?.split_once('`'))
            .map(|(name, rest)| (name, !rest.ends_with("| – |")))
            .collect();
        let enumerated: Vec<_> = Column::ALL.iter().map(|column| (column.name(), column.unknown().is_some())).collect();
        assert_eq!(enumerated, table);
    }

    #[test]
    fn each_column_stands_where_it_was_asked_for() {
        let places = places(&[Column::Waiting, Column::InFlight]);
        assert_eq!(places[Column::InFlight as usize], 2);
        assert_eq!(places[Column::Waiting as usize], 1);
        assert_eq!(places[Column::Slots as usize], ABSENT);
    }
}
