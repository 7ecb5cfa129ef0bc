//! What a scenario wants to see of a rollout at a moment.

use crate::{plan::Look, world::RolloutSeen};

/// What is not as it must be; nothing: all is.
pub(super) fn differs(look: &Look, seen: Option<&RolloutSeen>) -> Option<String> {
    let Some(seen) = seen else { return Some("finds no such rollout at the hub".into()) };
    let status = seen.object.as_ref().map(|object| &object.status)?;
    let tells = if status.message.is_empty() { String::new() } else { format!(" ({})", status.message) };
    if let Some(phase) = look.phase.filter(|phase| *phase != seen.phase) {
        return Some(format!("finds it {} {}{tells}; expected {phase}", seen.phase, status.reason));
    }
    if let Some(reason) = look.reason.as_ref().filter(|reason| **reason != status.reason) {
        return Some(format!("finds its reason to be {:?}{tells}; expected {reason:?}", status.reason));
    }
    if let Some(healthy) = look.healthy.filter(|healthy| *healthy != seen.done) {
        return Some(format!("finds {} healthy nodes{tells}; expected {healthy}", seen.done));
    }
    let (name, waits) = look.node.as_ref()?;
    match status.nodes.get(name) {
        None => Some(format!("finds no {name} among its nodes")),
        Some(node) if node.reason != *waits => {
            let is = format!("{} for {:?}: {}", node.phase, node.reason, node.message);
            Some(format!("finds {name} {is}; expected {waits:?}"))
        }
        Some(_) => None,
    }
}
