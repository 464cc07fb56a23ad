//! The machine's own apt sources, read to learn where its archive is.
//!
//! Both formats of apt-sources(5). It refuses to guess: where no source is for this machine's own
//! release, the caller asks the user for an address.

/// One archive address with the suites taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uri: String,
    pub(crate) suites: Vec<String>,
    pub(crate) components: Vec<String>,
}

/// The addresses from which other suites of the same distribution can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    pub(crate) main: String,
    pub(crate) security: Option<String>,
}

impl Archive {
    /// The archive of the release `codename` among the sources.
    pub(crate) fn of_release(sources: &[Source], codename: &str) -> Option<Self> {
        let with_suite = |suite: &str| {
            let mut fitting = sources.iter().filter(|source| {
                source.suites.iter().any(|s| s == suite)
                    && source.components.iter().any(|c| c == "main")
            });
            fitting.next().map(|source| source.uri.clone())
        };
        let main = with_suite(codename)?;
        let security =
            with_suite(&format!("{codename}-security")).or_else(|| security_beside(&main));
        Some(Self { main, security })
    }

    /// An archive given by hand.
    pub(crate) fn at(uri: &str) -> Self {
        Self { main: uri.to_owned(), security: security_beside(uri) }
    }
}

/// Mirrors keep `debian-security` beside `debian`.
fn security_beside(main: &str) -> Option<String> {
    let stem = main.trim_end_matches('/').strip_suffix("/debian")?;
    Some(format!("{stem}/debian-security"))
}

/// `*.list`: one source a line.
pub(crate) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_list_line).collect()
}

fn parse_list_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next()?;
    let suites = vec![words.next()?];
    Some(Source { uri, suites, components: words.collect() })
}

/// `*.sources`: deb822 stanzas, with continuation lines and comments.
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).flat_map(parse_stanza).collect()
}

fn parse_stanza(lines: &[&str]) -> Vec<Source> {
    let words = |field: &str| field_words(lines, field);
    let disabled = words("Enabled").first().is_some_and(|w| w.eq_ignore_ascii_case("no"));
    if disabled || !words("Types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let (suites, components) = (words("Suites"), words("Components"));
    let source = |uri| Source { uri, suites: suites.clone(), components: components.clone() };
    words("URIs").into_iter().map(source).collect()
}

fn field_words(lines: &[&str], field: &str) -> Vec<String> {
    let mut inside = false;
    let mut words = Vec::new();
    for line in lines {
        let value = if line.starts_with([' ', '\t']) {
            line
        } else {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            inside = name.eq_ignore_ascii_case(field);
            value
        };
        if inside {
            words.extend(value.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// A field of `/etc/os-release`.
pub(crate) fn os_release_field(text: &str, field: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main contrib # end
deb-src http://src.example/debian bookworm main
deb http://sec.example/debian-security bookworm-security main
deb\thttp://tab.example/x suite/
debris http://no.example/debian bookworm main
deb [unclosed http://no.example/debian bookworm main
";

    const DEB822: &str = "\
Types: deb deb-src
# a comment inside
URIs: http://a.example/debian
Suites: trixie
 trixie-updates
Components: main
Signed-By: /usr/share/keyrings/x.gpg

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

types: deb
uris: http://s.example/debian-security
suites: trixie-security
components: main
";

    #[test]
    fn one_line_format() {
        let found = parse_list(LIST);
        let uris: Vec<&str> = found.iter().map(|s| s.uri.as_str()).collect();
        assert_eq!(
            uris,
            [
                "http://one.example/debian",
                "http://sec.example/debian-security",
                "http://tab.example/x"
            ]
        );
        assert_eq!(found[0].components, ["main", "contrib"]);
    }

    #[test]
    fn deb822_format() {
        let found = parse_deb822(DEB822);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].suites, ["trixie", "trixie-updates"]);
        assert_eq!(found[1].uri, "http://s.example/debian-security");
    }

    #[test]
    fn the_archive_is_the_one_of_the_own_release() {
        let mut sources = parse_list("deb http://other.example/tool stable main\n");
        sources.extend(parse_deb822(DEB822));
        let archive = Archive::of_release(&sources, "trixie").unwrap();
        assert_eq!(archive.main, "http://a.example/debian");
        assert_eq!(archive.security.as_deref(), Some("http://s.example/debian-security"));
        assert_eq!(Archive::of_release(&sources, "noble"), None);
    }

    #[test]
    fn security_is_looked_for_beside_main() {
        let security = |uri| Archive::at(uri).security;
        assert_eq!(
            security("http://m.example/debian/").as_deref(),
            Some("http://m.example/debian-security")
        );
        assert_eq!(security("http://m.example/archive"), None);
    }

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "ID=debian\nVERSION_CODENAME=\"trixie\"\n";
        assert_eq!(os_release_field(text, "VERSION_CODENAME").as_deref(), Some("trixie"));
        assert_eq!(os_release_field(text, "VERSION"), None);
    }
}
