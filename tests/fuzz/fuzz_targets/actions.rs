//! Reads actions to the depth that the kernel takes, and prints them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovs_wire::action::DEPTH_MAX;
use ovs_wire::{Action, Actions, text};

fuzz_target!(|data: &[u8]| {
    walk(Actions::new(data), 0);
    let line = text::format_actions(Actions::new(data)).to_string();
    // Bytes that are no attribute are printed, but are no actions.
    if !line.contains("leftover") {
        let mut again = Vec::new();
        text::parse_actions(&line, &mut again).expect("what was printed can be read");
    }
});

fn walk(actions: Actions<'_>, depth: usize) {
    if depth == DEPTH_MAX {
        return;
    }
    for action in actions.iter().map_while(Result::ok) {
        match action {
            Action::Clone(inner) | Action::DecTtl(inner) => walk(inner, depth + 1),
            Action::Sample { actions, .. } => walk(actions, depth + 1),
            Action::CheckPktLen { greater, less_equal, .. } => {
                walk(greater, depth + 1);
                walk(less_equal, depth + 1);
            }
            _ => {}
        }
    }
}
