//! The backends that may take a request, read out of the flat rows of the interface.
//!
//! This is the only file that knows how a row is laid out: the backend's index, then one number a column. The layout
//! is a constant of the policy's type, which is why that type runs through this file.

use std::marker::PhantomData;

use crate::column::places;
use crate::{Column, Policy};

/// The backends that may take this request, at least one: best read with [`iter`](Self::iter).
#[derive(Debug)]
pub struct Candidates<'a, P> {
    rows: &'a [u32],
    policy: PhantomData<P>,
}

impl<'a, P: Policy> Candidates<'a, P> {
    const WIDTH: usize = P::COLUMNS.len() + 1;

    /// A view of `rows` as the host sends them to the policy.
    pub fn new(rows: &'a [u32]) -> Self {
        Self { rows, policy: PhantomData }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len() / Self::WIDTH
    }

    /// Whether there are none, which the host never sends.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The candidate in this row, counted from 0.
    pub fn at(&self, row: usize) -> Option<Candidate<'a, P>> {
        self.iter().nth(row)
    }

    /// The candidates in the order of their rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Candidate<'a, P>> + use<'a, P> {
        let rows = self.rows.chunks_exact(Self::WIDTH).enumerate();
        rows.map(|(row, numbers)| Candidate { row: row as u32, numbers, policy: PhantomData })
    }

    /// The candidate with the least `cost`. Among equals `random` decides, each being as likely as the others, so that
    /// workers who see the same numbers do not all pick the same backend.
    pub fn least<C: PartialOrd>(&self, random: u64, cost: impl Fn(&Candidate<'a, P>) -> C) -> Option<Candidate<'a, P>> {
        let mut best: Option<(C, Candidate<'a, P>)> = None;
        let (mut equals, mut dice) = (1_u64, random);
        for candidate in self.iter() {
            let cost = cost(&candidate);
            match &best {
                Some((least, _)) if cost > *least => continue,
                Some((least, _)) if cost == *least => {
                    // The n-th of equals takes the place with a chance of one in n. A step of Knuth's MMIX generator,
                    // whose upper half is the random one; multiplied instead of divided.
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    equals += 1;
                    if ((dice >> 32) * equals) >> 32 != 0 {
                        continue;
                    }
                }
                _ => equals = 1,
            }
            best = Some((cost, candidate));
        }
        best.map(|(_, candidate)| candidate)
    }
}

/// One backend that may take the request.
#[derive(Debug)]
pub struct Candidate<'a, P> {
    row: u32,
    numbers: &'a [u32],
    policy: PhantomData<P>,
}

impl<P: Policy> Candidate<'_, P> {
    const PLACES: [usize; Column::ALL.len()] = places(P::COLUMNS);

    /// Its row, counted from 0: what [`Decision::Pick`](crate::Decision::Pick) takes.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// Its index in [`Fleet::backends`](crate::Fleet::backends).
    pub fn backend(&self) -> usize {
        self.numbers[0] as usize
    }

    /// The number in this column as the interface has it, the stand-in for "unknown" included.
    ///
    /// # Panics
    /// If the policy's `COLUMNS` lack the column: a mistake of its author, which the host's trial call finds when it
    /// loads the plugin.
    #[inline]
    #[track_caller]
    pub fn get(&self, column: Column) -> u32 {
        match self.numbers.get(Self::PLACES[column as usize]) {
            Some(number) => *number,
            None => panic!("the policy reads the column `{}`, which is not in its COLUMNS", column.name()),
        }
    }

    /// The number in this column, `None` where nobody knows it. Unknown load is not zero load: say what the policy
    /// takes instead.
    ///
    /// # Panics
    /// As [`get`](Self::get).
    #[inline]
    #[track_caller]
    pub fn known(&self, column: Column) -> Option<u32> {
        let number = self.get(column);
        (column.unknown() != Some(number)).then_some(number)
    }
}

/// Rows for the native tests of a policy, laid out as the host does it.
///
/// ```
/// # use vision_proxy_sdk::{Candidates, Column, Decision, Policy, Request, Rows, Setup};
/// # struct MyPolicy;
/// # impl Policy for MyPolicy {
/// #     const COLUMNS: &'static [Column] = &[Column::InFlight, Column::Waiting];
/// #     fn configure(_: &Setup) -> Result<Self, String> { Ok(Self) }
/// #     fn pick(&mut self, _: &Request, candidates: &Candidates<Self>) -> Decision { candidates.at(1).into() }
/// # }
/// let rows = Rows::<MyPolicy>::new().row(0, &[(Column::InFlight, 7)]).row(4, &[(Column::Waiting, 2)]);
/// assert_eq!(MyPolicy.pick(&Request::example(), &rows.candidates()), Decision::Pick(1));
/// ```
#[derive(Debug)]
pub struct Rows<P> {
    numbers: Vec<u32>,
    policy: PhantomData<P>,
}

impl<P: Policy> Rows<P> {
    /// No rows yet.
    #[expect(clippy::new_without_default, reason = "a fleet without candidates is where a test begins, not a default")]
    pub fn new() -> Self {
        Self { numbers: Vec::new(), policy: PhantomData }
    }

    /// Adds a candidate. What `numbers` leave out is that of an idle backend with one slot and weight 1 whose engine
    /// says nothing.
    ///
    /// # Panics
    /// If `numbers` name a column that the policy does not ask for: the test would not test it.
    #[track_caller]
    pub fn row(mut self, backend: u32, numbers: &[(Column, u32)]) -> Self {
        for (column, _) in numbers {
            assert!(P::COLUMNS.contains(column), "the policy does not ask for the column `{}`", column.name());
        }
        let number = |column: &Column| {
            let given = numbers.iter().find(|(given, _)| given == column);
            given.map_or_else(|| idle(*column), |(_, number)| *number)
        };
        self.numbers.push(backend);
        self.numbers.extend(P::COLUMNS.iter().map(number));
        self
    }

    /// The rows as the policy sees them.
    pub fn candidates(&self) -> Candidates<'_, P> {
        Candidates::new(&self.numbers)
    }
}

fn idle(column: Column) -> u32 {
    match column {
        Column::Slots | Column::Free | Column::Weight => 1,
        _ => column.unknown().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decision, Request, Setup};

    #[derive(Debug)]
    struct Weighed;

    impl Policy for Weighed {
        const COLUMNS: &'static [Column] = &[Column::Weight, Column::Waiting];

        fn configure(_: &Setup) -> Result<Self, String> {
            Ok(Self)
        }

        fn pick(&mut self, request: &Request, candidates: &Candidates<Self>) -> Decision {
            candidates.least(request.random, |candidate| candidate.get(Column::Weight)).into()
        }
    }

    #[test]
    fn rows_are_read_as_the_host_sends_them() {
        let candidates = Candidates::<Weighed>::new(&[7, 1, 0, 9, 3, u32::MAX]);
        let read: Vec<_> = candidates
            .iter()
            .map(|c| (c.row(), c.backend(), c.get(Column::Weight), c.known(Column::Waiting)))
            .collect();
        assert_eq!(candidates.len(), 2);
        assert_eq!(read, [(0, 7, 1, Some(0)), (1, 9, 3, None)]);
    }

    #[test]
    #[should_panic(expected = "`slots`, which is not in its COLUMNS")]
    fn a_column_not_asked_for_is_said_by_name() {
        Rows::<Weighed>::new().row(0, &[]).candidates().at(0).unwrap().get(Column::Slots);
    }

    #[test]
    fn equals_are_equally_likely() {
        let weights = [2, 1, 1, 2, 9, 1];
        let rows = weights
            .iter()
            .zip(0..)
            .fold(Rows::new(), |rows, (weight, backend)| rows.row(backend, &[(Column::Weight, *weight)]));
        let mut taken = [0; 6];
        for random in (0..3_000_u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let Decision::Pick(row) = Weighed.pick(&Request { random, ..Request::example() }, &rows.candidates())
            else {
                panic!("nothing picked");
            };
            taken[row as usize] += 1;
        }
        let often = taken.map(|times| (900..1_100).contains(&times));
        assert_eq!(often, [false, true, true, false, false, true], "{taken:?}");
        assert_eq!(taken[0] + taken[3] + taken[4], 0, "{taken:?}");
    }

    #[test]
    fn the_highest_cost_is_still_a_candidate() {
        let rows = Rows::<Weighed>::new();
        assert!(rows.candidates().least(5, |_| 0).is_none());
        assert!(rows.row(0, &[]).candidates().least(5, |_| u64::MAX).is_some());
    }
}
