//! Who may be picked now: a bit for each backend, side by side, so that a pick among a thousand reads a few cache lines
//! instead of a thousand.
//!
//! A bit is a hint. One that says "open" too late is found out by the claim that fails; one that says "closed" too late
//! would leave a slot idle, so whoever clears it looks once more at the backend afterwards (`Backend::show`), while
//! whoever opens the backend sets it afterwards: in sequentially consistent order one of the two comes last and is right.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// Backends that have a seat; of those past it nothing is noted.
const SEATS: usize = 16_384;
const BITS: usize = u64::BITS as usize;

/// The bits of all backends.
#[derive(Debug)]
pub struct Board {
    /// May be picked.
    open: Box<[AtomicU64]>,
    /// Has failed of late.
    erring: Box<[AtomicU64]>,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    given: u32,
    returned: Vec<Seat>,
}

/// The place of one backend, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat(u32);

impl Default for Board {
    fn default() -> Self {
        let words = || (0..SEATS / BITS).map(|_| AtomicU64::new(0)).collect();
        Self { open: words(), erring: words(), seats: Mutex::default() }
    }
}

impl Board {
    /// A seat for a new backend; closed.
    pub(super) fn sit(&self) -> Seat {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = seats.returned.pop() {
            return seat;
        }
        let seat = seats.given;
        seats.given = seat.saturating_add(1);
        Seat(seat)
    }

    /// Takes a seat back from a backend that is gone.
    pub(super) fn leave(&self, seat: Seat) {
        set(&self.open, seat, false);
        set(&self.erring, seat, false);
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).returned.push(seat);
    }

    pub(super) fn set_open(&self, seat: Seat, is_open: bool) {
        set(&self.open, seat, is_open);
    }

    pub(super) fn set_erring(&self, seat: Seat, errs: bool) {
        set(&self.erring, seat, errs);
    }

    /// Whether a backend is open, as last noted; `None` where nothing is noted of it.
    pub fn is_open(&self, seat: Seat) -> Option<bool> {
        is_set(&self.open, seat)
    }

    /// Whether a backend may have failed of late.
    pub fn errs(&self, seat: Seat) -> bool {
        is_set(&self.erring, seat).unwrap_or(true)
    }
}

fn is_set(words: &[AtomicU64], Seat(at): Seat) -> Option<bool> {
    Some(words.get(at as usize / BITS)?.load(SeqCst) >> (at as usize % BITS) & 1 == 1)
}

/// Writes only what changes: the words are read by every pick of every worker.
fn set(words: &[AtomicU64], Seat(at): Seat, yes: bool) {
    let bit = 1 << (at as usize % BITS);
    match words.get(at as usize / BITS) {
        Some(word) if yes && word.load(SeqCst) & bit == 0 => drop(word.fetch_or(bit, SeqCst)),
        Some(word) if !yes && word.load(SeqCst) & bit != 0 => drop(word.fetch_and(!bit, SeqCst)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seat_has_a_bit_of_its_own_and_is_given_again_closed() {
        let board = Board::default();
        let seats: Vec<Seat> = (0..130).map(|_| board.sit()).collect();
        board.set_open(seats[64], true);
        let open: Vec<usize> = (0..130).filter(|at| board.is_open(seats[*at]) == Some(true)).collect();
        assert_eq!(open, [64]);
        board.leave(seats[64]);
        let again = board.sit();
        assert_eq!((again, board.is_open(again)), (seats[64], Some(false)));
    }

    #[test]
    fn those_past_the_last_seat_are_looked_at_themselves() {
        let board = Board::default();
        let last = (0..=SEATS).map(|_| board.sit()).last().unwrap();
        board.set_open(last, true);
        assert_eq!((board.is_open(last), board.errs(last)), (None, true));
    }
}
