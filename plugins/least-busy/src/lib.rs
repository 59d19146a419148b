//! The backend with the most room for its size: for fleets of unequal machines and unequal requests.
//!
//! Stateless: every number it compares comes with the request.

use vision_proxy_sdk::{Candidate, Candidates, Column, Decision, Policy, Request, Setup, export_policy};

/// Picks the backend that would be least busy with this request on top; ties are broken at random.
pub struct LeastBusy;

/// One failed attempt in ten weighs as much as being full. Failing is fast, so a broken backend is always idle:
/// unless errors outweigh idleness it would attract every request.
const COST_PER_ERROR_PERMILLE: f64 = 1.0 / 100.0;

/// A model that must be loaded first costs as much as being half full: worth it only where those that have it are.
const COST_OF_LOADING: f64 = 0.5;

/// How busy the candidate would be: 1 where its every slot would be taken. What waits inside the engine counts besides
/// what we sent there; an engine that says nothing is judged by our own count.
fn cost(candidate: &Candidate<LeastBusy>) -> f64 {
    let waiting = candidate.known(Column::Waiting).unwrap_or(0);
    let requests = f64::from(candidate.get(Column::InFlight)) + f64::from(waiting) + 1.0;
    // Weight 0 is no room at all: such a backend costs without end, and serves only where there is no other.
    let room = f64::from(candidate.get(Column::Slots)) * f64::from(candidate.get(Column::Weight));
    let errors = f64::from(candidate.get(Column::ErrorsPermille)) * COST_PER_ERROR_PERMILLE;
    let loading = if candidate.known(Column::Loaded) == Some(0) { COST_OF_LOADING } else { 0.0 };
    requests / room + errors + loading
}

impl Policy for LeastBusy {
    const COLUMNS: &'static [Column] =
        &[Column::InFlight, Column::Slots, Column::Waiting, Column::Weight, Column::ErrorsPermille, Column::Loaded];

    fn configure(_: &Setup) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&mut self, request: &Request, candidates: &Candidates<Self>) -> Decision {
        candidates.least(request.random, cost).into()
    }
}

export_policy!(LeastBusy);

#[cfg(test)]
mod tests {
    use super::*;
    use Column::{ErrorsPermille, InFlight, Loaded, Slots, Waiting, Weight};
    use vision_proxy_sdk::Rows;

    /// The rows picked under 12 different random numbers, each once.
    fn picked(candidates: &[&[(Column, u32)]]) -> Vec<u32> {
        let rows =
            candidates.iter().zip(0..).fold(Rows::<LeastBusy>::new(), |rows, (row, backend)| rows.row(backend, row));
        let mut picked: Vec<u32> = (0..12)
            .map(|random| match LeastBusy.pick(&Request { random, ..Request::example() }, &rows.candidates()) {
                Decision::Pick(row) => row,
                other => panic!("{other:?}"),
            })
            .collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    #[test]
    fn load_is_relative_to_slots() {
        assert_eq!(picked(&[&[(InFlight, 3), (Slots, 4)], &[(InFlight, 8), (Slots, 32)]]), [1]);
    }

    #[test]
    fn ties_go_to_any() {
        let same: &[(Column, u32)] = &[(InFlight, 2), (Slots, 8)];
        assert_eq!(picked(&[same, &[(InFlight, 5), (Slots, 8)], same, same]), [0, 2, 3]);
    }

    #[test]
    fn an_engines_queue_counts_and_silence_does_not() {
        assert_eq!(picked(&[&[(InFlight, 1), (Slots, 8), (Waiting, 4)], &[(InFlight, 4), (Slots, 8)]]), [1]);
        assert_eq!(picked(&[&[(InFlight, 1), (Slots, 8)], &[(InFlight, 1), (Slots, 8), (Waiting, 0)]]), [0, 1]);
    }

    #[test]
    fn failing_fast_attracts_nothing() {
        let broken: &[(Column, u32)] = &[(InFlight, 0), (Slots, 64), (ErrorsPermille, 100)];
        assert_eq!(picked(&[broken, &[(InFlight, 63), (Slots, 64)]]), [1]);
        let nearly_sound: &[(Column, u32)] = &[(InFlight, 0), (Slots, 64), (ErrorsPermille, 5)];
        assert_eq!(picked(&[nearly_sound, &[(InFlight, 63), (Slots, 64)]]), [0]);
    }

    #[test]
    fn a_model_that_is_loaded_is_preferred_until_its_backend_is_half_full() {
        let unloaded: &[(Column, u32)] = &[(InFlight, 0), (Slots, 8), (Loaded, 0)];
        assert_eq!(picked(&[unloaded, &[(InFlight, 3), (Slots, 8), (Loaded, 1)]]), [1]);
        assert_eq!(picked(&[unloaded, &[(InFlight, 5), (Slots, 8), (Loaded, 1)]]), [0]);
        assert_eq!(picked(&[unloaded, &[(InFlight, 3), (Slots, 8)]]), [1], "unknown is not unloaded");
    }

    #[test]
    fn weight_widens_and_nought_is_the_last_resort() {
        assert_eq!(picked(&[&[(InFlight, 4), (Slots, 8), (Weight, 2)], &[(InFlight, 3), (Slots, 8)]]), [0]);
        assert_eq!(picked(&[&[(Slots, 8), (Weight, 0)], &[(InFlight, 7), (Slots, 8), (ErrorsPermille, 999)]]), [1]);
        assert_eq!(picked(&[&[(Weight, 0)]]), [0]);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let most = [InFlight, Slots, Waiting, Weight, ErrorsPermille].map(|column| (column, u32::MAX - 1));
        assert_eq!(picked(&[&most]), [0]);
    }
}
