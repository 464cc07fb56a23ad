//! What packagers take from the command line's definition: manual pages and completions.

use std::io::Write as _;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;

/// Writes `upcalld.1` and a page for each command into a directory, which is made if there is none.
pub(crate) fn man(directory: &Path) -> Result<(), Exit> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.map_err(|err| {
        Exit::Other(format!("cannot write manual pages to {}: {err}", directory.display()))
    })
}

/// Prints the completions for a shell.
pub(crate) fn completions(shell: Shell) {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "upcalld", &mut text);
    // That nobody reads it any more ('| head') is no failure.
    let _nobody_reads = std::io::stdout().write_all(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        man(directory.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(page("upcalld.1").contains("Exit status"));
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let text = page(&format!("upcalld-{}.1", command.get_name()));
            let shown = command.get_arguments().filter(|argument| !argument.is_hide_set());
            for option in shown.filter_map(clap::Arg::get_long) {
                let escaped = format!("\\-\\-{}", option.replace('-', "\\-"));
                assert!(text.contains(&escaped), "{option} is not in\n{text}");
            }
        }
        let file = directory.path().join("upcalld.1");
        let err = man(&file).unwrap_err().to_string();
        assert!(err.contains("cannot write manual pages to"), "{err}");
    }
}
