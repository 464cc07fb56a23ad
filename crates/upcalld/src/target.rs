//! Where an upcall goes, in words and as JSON.

use serde_json::{Value, json as value};
use upcall::features::{Delivery, End, Target};

/// For people.
pub(crate) fn text(target: &Target) -> String {
    let port_id = target.port_id;
    match &target.end {
        End::Nowhere => "no socket (port id 0)".to_owned(),
        End::Dead => format!("port id {port_id} -> no such socket"),
        End::Alive(None) => format!("port id {port_id} -> a process that cannot be seen"),
        End::Alive(Some(owner)) => {
            format!("port id {port_id} -> {} (pid {})", owner.command, owner.pid)
        }
    }
}

/// The processes that upcalls go to, for people.
pub(crate) fn served_by(delivery: &Delivery) -> String {
    let served: Vec<_> =
        delivery.served_by().iter().map(|o| format!("{} (pid {})", o.command, o.pid)).collect();
    if served.is_empty() { "nobody known".to_owned() } else { served.join(", ") }
}

/// For programs.
pub(crate) fn json(target: &Target) -> Value {
    let owner = match &target.end {
        End::Alive(owner) => owner.as_ref(),
        _ => None,
    };
    value!({
        "port_id": target.port_id,
        "alive": target.end.is_alive(),
        "pid": owner.map(|owner| owner.pid),
        "command": owner.map(|owner| &owner.command),
    })
}
