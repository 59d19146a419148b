//! Components that cost a compiler far more than their size lets expect.

use std::fmt::Write as _;

use super::guests::{Guest, LAST_ROW};

/// Eight hundred bytes: components of ten instances of components of ten instances …, a thousand million in all.
pub fn instances() -> Vec<u8> {
    let mut text = "(component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
    for depth in 1..=9 {
        let ten = format!("(instance (instantiate $c{}))", depth - 1).repeat(10);
        text = format!("(component $c{depth} {text} {ten})");
    }
    wat::parse_str(format!("(component {text} (instance (instantiate $c9)))")).expect("a component in text")
}

/// Nothing but a knot of so many branches.
pub fn branches(branches: usize) -> Vec<u8> {
    wat::parse_str(format!("(component (core module {}))", knot(branches))).expect("a component in text")
}

/// A policy that picks the last row, but takes a compiler some seconds.
pub fn slow_to_compile() -> Vec<u8> {
    Guest { pick: LAST_ROW, fields: &knot(400), ..Guest::default() }.policy()
}

/// The text of a function in which every one of so many branches may have changed some of 200 variables.
fn knot(branches: usize) -> String {
    const VARIABLES: usize = 200;
    let variables = "i32 ".repeat(VARIABLES);
    let mut text = format!("(func (export \"f\") (param i32) (result i32) (local {variables})");
    for at in 0..branches {
        let [asked, set, one, other] = [1, 7, 3, 11].map(|step| at * step % VARIABLES);
        let changed = format!("(local.set {set} (i32.add (local.get {one}) (local.get {other})))");
        _ = write!(text, "(if (i32.and (local.get {asked}) (i32.const {at})) (then {changed}))");
    }
    text += "(local.get 0)";
    (0..VARIABLES).for_each(|variable| _ = write!(text, "(i32.add (local.get {variable}))"));
    text + ")"
}
