//! The states a backend is shown in.

/// Whether a backend takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Available,
    Busy,
    Down,
    Draining,
    Unknown,
}

impl State {
    pub const ALL: [Self; 5] = [Self::Available, Self::Busy, Self::Down, Self::Draining, Self::Unknown];

    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Busy => "busy",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }
}
