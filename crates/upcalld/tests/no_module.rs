//! What the program says on a host whose kernel has no datapath.

use std::path::Path;
use std::process::Command;

#[test]
fn a_kernel_without_the_module_is_named_with_the_remedy() {
    if Path::new("/sys/module/openvswitch").exists() {
        eprintln!(
            "SKIP-OK a_kernel_without_the_module_is_named_with_the_remedy: the module is loaded here"
        );
        return;
    }
    let run = ["run", "--datapath", "upcalld-test0", "--port", "no-such-if0"];
    let output = Command::new(env!("CARGO_BIN_EXE_upcalld")).args(run).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if Path::new("/sys/module/openvswitch").exists() {
        // The kernel had it after all, and loaded it: then the port is what is wrong.
        assert_eq!(output.status.code(), Some(2), "{said}");
        return;
    }
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in ["upcalld: ", "no Open vSwitch datapath", "modprobe openvswitch"] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
}
