//! Components that cost a compiler far more than their size lets expect.

use std::fmt::Write as _;

/// Eight hundred bytes: components of ten instances of components of ten instances …, a thousand million in all.
pub fn instances() -> Vec<u8> {
    let mut text = "(component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
    for depth in 1..=9 {
        let ten = format!("(instance (instantiate $c{}))", depth - 1).repeat(10);
        text = format!("(component $c{depth} {text} {ten})");
    }
    wat::parse_str(format!("(component {text} (instance (instantiate $c9)))")).expect("a component in text")
}

/// A function in which every one of so many branches may have changed some of 200 variables.
pub fn branches(branches: usize) -> Vec<u8> {
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
    wat::parse_str(format!("(component (core module {text})))")).expect("a component in text")
}
