//! Backends in turn, each as often as its weight says.
//!
//! Stateless: the turn comes with the request, so that all workers together deal in strict order.

use vision_proxy_sdk::{Candidate, Candidates, Column, Decision, Policy, Request, Setup, export_policy};

/// With equal weights strictly one after another. With weights 5, 1, 1 in every seven turns five, one and one, and
/// as far apart as they go.
pub struct RoundRobin;

/// Weights past a million count as a million: the products below then fit in 64 bits.
const WEIGHT_MAX: u32 = 1_000_000;

fn weight(candidate: &Candidate<RoundRobin>) -> u64 {
    candidate.get(Column::Weight).min(WEIGHT_MAX).into()
}

impl Policy for RoundRobin {
    const COLUMNS: &'static [Column] = &[Column::Weight];

    fn configure(_: &Setup) -> Result<Self, String> {
        Ok(Self)
    }

    fn pick(&mut self, request: &Request, candidates: &Candidates<Self>) -> Decision {
        let first = candidates.at(0).map_or(0, |candidate| weight(&candidate));
        if first > 0 && candidates.iter().all(|candidate| weight(&candidate) == first) {
            return Decision::Pick((request.sequence % candidates.len() as u64) as u32);
        }
        by_weight(request.sequence, candidates)
    }
}

/// Of the `turns` of a cycle the first row takes its share, evenly spaced; of what is left the second row takes its
/// share, and so on. Whose turn it is follows without remembering the turns before.
fn by_weight(sequence: u64, candidates: &Candidates<RoundRobin>) -> Decision {
    let mut turns: u64 = candidates.iter().map(|candidate| weight(&candidate)).sum();
    let Some(mut turn) = sequence.checked_rem(turns) else {
        return Decision::Abstain; // every weight is 0: nobody has a turn
    };
    for candidate in candidates.iter() {
        let share = weight(&candidate);
        let taken_before = |turn: u64| (turn * share).div_ceil(turns);
        let taken = taken_before(turn);
        if taken_before(turn + 1) > taken {
            return Decision::Pick(candidate.row());
        }
        turn -= taken;
        turns -= share;
    }
    Decision::Abstain
}

export_policy!(RoundRobin);

#[cfg(test)]
mod tests {
    use super::*;
    use vision_proxy_sdk::Rows;

    fn deal(weights: &[u32], turns: u64) -> Vec<u32> {
        let rows = weights
            .iter()
            .zip(0..)
            .fold(Rows::<RoundRobin>::new(), |rows, (weight, backend)| rows.row(backend, &[(Column::Weight, *weight)]));
        let picks = (0..turns).map(|sequence| {
            let request = Request { sequence, ..Request::example() };
            match RoundRobin.pick(&request, &rows.candidates()) {
                Decision::Pick(row) => row,
                other => panic!("{other:?} at turn {sequence}"),
            }
        });
        picks.collect()
    }

    #[test]
    fn equal_weights_are_strict_turns() {
        assert_eq!(deal(&[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(deal(&[5, 5], 6), [0, 1, 0, 1, 0, 1]);
        assert_eq!(deal(&[u32::MAX, u32::MAX], 4), [0, 1, 0, 1]);
    }

    #[test]
    fn every_cycle_gives_each_exactly_its_weight() {
        for weights in [&[5, 1, 1][..], &[3, 2, 1], &[0, 4, 6], &[7], &[1, 100], &[4, 1, 1, 9, 2, 16]] {
            let total: u32 = weights.iter().sum();
            for (row, weight) in weights.iter().enumerate() {
                let taken = deal(weights, total.into()).iter().filter(|pick| **pick == row as u32).count();
                assert_eq!(taken as u32, *weight, "row {row} of {weights:?}");
            }
        }
    }

    #[test]
    fn the_turns_of_a_row_lie_apart() {
        assert_eq!(deal(&[3, 2, 1], 6), [0, 1, 0, 1, 0, 2]);
        let weights = [4, 1, 1, 9, 2, 16];
        let mut taken = [0; 6];
        for (turn, row) in (1..).zip(deal(&weights, 33)) {
            taken[row as usize] += 1;
            let is_near_its_share = |row: usize| (taken[row] * 33 - weights[row] as i32 * turn).abs() < 3 * 33;
            assert!((0..6).all(is_near_its_share), "{taken:?} after {turn} turns");
        }
    }

    #[test]
    fn without_any_weight_the_host_decides() {
        let rows = Rows::<RoundRobin>::new().row(0, &[(Column::Weight, 0)]);
        assert_eq!(RoundRobin.pick(&Request::example(), &rows.candidates()), Decision::Abstain);
    }

    #[test]
    fn the_largest_fleet_does_not_overflow() {
        let rows =
            (0..4096).fold(Rows::<RoundRobin>::new(), |rows, backend| rows.row(backend, &[(Column::Weight, u32::MAX)]));
        let request = Request { sequence: u64::MAX, ..Request::example() };
        assert!(matches!(RoundRobin.pick(&request, &rows.candidates()), Decision::Pick(_)));
    }
}
