//! The targets, and the bound of what a single input may cost in memory.

#![allow(missing_docs)]

pub mod bounded;
pub mod targets;

/// Runs a target and looks at what it took.
pub fn run(name: &str, data: &[u8]) {
    let Some((_, target, most)) = targets::TARGETS.iter().find(|(known, ..)| *known == name) else {
        panic!("there is no target {name}");
    };
    bounded::within(*most, || target(data));
}
