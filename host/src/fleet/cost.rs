//! What a request takes of a backend: slots, and memory for its tokens.

/// The most slots that a backend is taken to have.
pub const SLOTS_LIMIT: u32 = (1 << 14) - 1;
/// The most tokens that a request is taken to need.
const TOKENS_LIMIT: u32 = (1 << 18) - 1;

/// What one request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Slots; at least one.
    pub slots: u32,
    /// Tokens that its prompt and its answer are guessed to have. What they take of a KV-cache is measured.
    pub tokens: u32,
}

impl Cost {
    /// Within what a backend of so many slots counts.
    pub(super) fn within(self, slots: u32) -> Self {
        Self { slots: self.slots.min(slots).max(1), tokens: self.tokens.min(TOKENS_LIMIT) }
    }
}

/// What a backend holds: requests of ours, and what they take together. Changed by one atomic operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    pub requests: u32,
    pub slots: u32,
    pub tokens: u32,
}

impl Held {
    /// With one request more. No number runs into the next: as many requests as there are slots at the most, and one
    /// that is alone, each with as many tokens at the most.
    pub fn and(self, cost: Cost) -> Self {
        let Self { requests, slots, tokens } = self;
        Self { requests: requests + 1, slots: slots + cost.slots, tokens: tokens + cost.tokens }
    }

    pub fn of(packed: u64) -> Self {
        let (requests, slots) = ((packed >> 50) as u32, (packed >> 32) as u32 & 0x3_ffff);
        Self { requests, slots, tokens: packed as u32 }
    }

    pub fn packed(self) -> u64 {
        u64::from(self.requests) << 50 | u64::from(self.slots) << 32 | u64::from(self.tokens)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A request of so many slots that needs next to no memory.
    pub fn slots(slots: u32) -> Cost {
        Cost { slots, tokens: 1 }
    }

    #[test]
    fn a_backend_full_of_the_largest_requests_is_counted_right() {
        let largest = Cost { slots: u32::MAX, tokens: u32::MAX };
        let dear = largest.within(SLOTS_LIMIT);
        assert_eq!(Held::of(Held::default().and(dear).packed()), Held { requests: 1, slots: 16_383, tokens: 262_143 });
        let one = Cost { slots: 0, ..largest }.within(SLOTS_LIMIT);
        let mut packed = 0;
        for _ in 0..SLOTS_LIMIT {
            packed = Held::of(packed).and(one).packed();
        }
        assert_eq!(Held::of(packed), Held { requests: 16_383, slots: 16_383, tokens: 16_383 * 262_143 });
        for _ in 0..SLOTS_LIMIT {
            packed -= Held::default().and(one).packed();
        }
        assert_eq!(packed, 0);
    }
}
