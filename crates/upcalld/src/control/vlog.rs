//! `vlog/list` and `vlog/set`: what is logged, in the peer's words.

use std::fmt::Write as _;

use tracing_subscriber::filter::LevelFilter;

use super::Answer;
use crate::logging::{Levels, MODULES};

/// Level of each module. Everything is logged on standard error, the console.
pub(super) fn list(levels: &Levels) -> String {
    let mut text = String::from(
        "                 console    syslog    file\n                 -------    ------    ------\n",
    );
    for (module, level) in levels.list() {
        let name = level.map_or("?", name);
        let _ = writeln!(text, "{module:<16}  {name:>4}       {0:>4}       {0:>4}", "OFF");
    }
    text
}

/// The peer's name of a level; it has none below debug.
fn name(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::OFF => "OFF",
        LevelFilter::ERROR => "ERR",
        LevelFilter::WARN => "WARN",
        LevelFilter::INFO => "INFO",
        _ => "DBG",
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    Some(match word {
        "off" => LevelFilter::OFF,
        "emer" | "err" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "dbg" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

/// Sets what each of `specs` says; without any everything is logged at debug.
pub(super) fn set(levels: &Levels, specs: &[String]) -> Result<Answer, String> {
    let specs: Vec<Spec> = if specs.is_empty() {
        vec![Spec::default()]
    } else {
        // All of them are read before one is in force.
        specs.iter().map(|text| Spec::read(text)).collect::<Result<_, _>>()?
    };
    for spec in specs {
        let modules = spec.module.map_or_else(|| MODULES.to_vec(), |module| vec![module]);
        levels.set(&modules, spec.level.unwrap_or(LevelFilter::DEBUG))?;
    }
    Ok(Answer::Text(String::new()))
}

/// A module, a destination and a level, in any order, each at most once.
#[derive(Debug, Default, PartialEq)]
struct Spec {
    module: Option<&'static str>,
    level: Option<LevelFilter>,
}

impl Spec {
    fn read(text: &str) -> Result<Self, String> {
        let mut spec = Self::default();
        let lower = text.to_lowercase();
        for word in lower.split([' ', ',', ':', '\t']).filter(|word| !word.is_empty()) {
            if matches!(word, "any" | "console") {
                continue;
            }
            if matches!(word, "syslog" | "file") {
                return Err(format!("upcalld logs to the console (standard error), not to {word}"));
            }
            if let Some(level) = level(word) {
                if spec.level.replace(level).is_some() {
                    return Err("cannot specify multiple levels".to_owned());
                }
            } else if let Some(module) = MODULES.iter().find(|module| **module == word) {
                if spec.module.replace(module).is_some() {
                    return Err("cannot specify multiple modules".to_owned());
                }
            } else {
                return Err(format!("no destination, level, or module \"{word}\""));
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_words_in_any_order() {
        let spec = Spec::read("upcall:console:WARN").unwrap();
        assert_eq!(spec, Spec { module: Some("upcall"), level: Some(LevelFilter::WARN) });
        assert_eq!(Spec::read("ANY,any off").unwrap().level, Some(LevelFilter::OFF));
        for (text, why) in [
            ("dbg:warn", "multiple levels"),
            ("upcall upcalld", "multiple modules"),
            ("file:dbg", "standard error"),
            ("nonsense", "no destination, level, or module \"nonsense\""),
        ] {
            let err = Spec::read(text).unwrap_err();
            assert!(err.contains(why), "{err}");
        }
    }

    #[test]
    fn a_set_with_a_mistake_changes_nothing() {
        let levels = Levels::for_tests();
        let before = list(&levels);
        assert!(before.contains("\nupcall            INFO        OFF        OFF\n"), "{before}");
        assert!(set(&levels, &["dbg".to_owned(), "x".to_owned()]).is_err());
        assert_eq!(list(&levels), before);
        set(&levels, &["upcall:dbg".to_owned()]).unwrap();
        assert!(list(&levels).contains("\nupcall             DBG        OFF        OFF\n"));
        set(&levels, &[]).unwrap();
        assert!(!list(&levels).contains("INFO"));
    }
}
