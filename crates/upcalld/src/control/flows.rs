//! `dpctl/dump-flows`: the kernel's flow table, in the peer's form and with its options.

use std::fmt::Write as _;

use upcall::{FlowQuery, KeySummary, Ports};

use super::flow_filter::Filter;
use super::{Answer, View, dpif};

pub(super) const USAGE: &str =
    "[-m | --more] [--names | --no-names] [dp] [filter=filter] [type=type]";

/// Longest dump.
const BYTES_MAX: usize = 64 << 20;
/// Types that all flows of a kernel's datapath have, and those that none has.
const OURS: [&str; 3] = ["all", "ovs", "non-offloaded"];
const OTHERS: [&str; 4] = ["tc", "dpdk", "offloaded", "partially-offloaded"];

/// A line for each flow; behind a number that is too large, how many were left out.
pub(super) async fn dump(view: View<'_>, arguments: &[String]) -> Result<Answer, String> {
    let request = Request::read(arguments, &view.dispatcher.ports())?;
    if let Some(name) = request.datapath.filter(|name| !dpif::is_ours(view, name)) {
        return Err(dpif::refuse(view, name));
    }
    if request.nothing {
        return Ok(Answer::Text(String::new()));
    }
    let filter = |key: &KeySummary, mask: &KeySummary| request.filter.matches(key, mask);
    let query = FlowQuery {
        bytes_max: BYTES_MAX,
        more: request.more,
        // As the peer: whoever wants more wants names.
        names: request.names.unwrap_or(request.more),
        filter: (!request.filter.is_empty()).then_some(&filter),
    };
    let found = view.dispatcher.flow_text(&query).await.map_err(|err| err.to_string())?;
    let mut text = found.lines;
    if found.left_out > 0 {
        let (left_out, mib) = (found.left_out, BYTES_MAX >> 20);
        let _ =
            writeln!(text, "({left_out} flows left out: {mib} MiB at most; filter= shows fewer)");
    }
    Ok(Answer::Text(text))
}

/// What was asked for.
#[derive(Debug, Default, PartialEq)]
struct Request<'a> {
    more: bool,
    names: Option<bool>,
    datapath: Option<&'a str>,
    filter: Filter,
    /// Only flows of a type that there is none of.
    nothing: bool,
}

impl<'a> Request<'a> {
    fn read(arguments: &'a [String], ports: &Ports) -> Result<Self, String> {
        let mut request = Self::default();
        for word in arguments.iter().map(String::as_str) {
            match (word, word.split_once('=')) {
                ("-m" | "--more", _) => request.more = true,
                ("--names", _) => request.names = Some(true),
                ("--no-names", _) => request.names = Some(false),
                (_, Some(("filter", text))) => request.filter = Filter::read(text, ports)?,
                (_, Some(("type", text))) => request.nothing = !has_flows(text)?,
                (_, Some(("pmd", _))) => {
                    return Err(format!("'{word}': the kernel's datapath has no PMD threads"));
                }
                _ if word.starts_with('-') || word.contains('=') || request.datapath.is_some() => {
                    return Err(format!("'{word}' is none of {USAGE}"));
                }
                _ => request.datapath = Some(word),
            }
        }
        Ok(request)
    }
}

/// Are there flows of one of these types?
fn has_flows(types: &str) -> Result<bool, String> {
    let known = |name: &&str| OURS.contains(name) || OTHERS.contains(name);
    if let Some(unknown) = types.split(',').find(|name| !known(name)) {
        let all = [&OURS[..], &OTHERS].concat().join(", ");
        return Err(format!("there is no type '{unknown}'; there are {all}"));
    }
    Ok(types.split(',').any(|name| OURS.contains(&name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<(bool, Option<bool>, Option<String>, bool), String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let request = Request::read(&words, &Ports::default())?;
        let Request { more, names, datapath, nothing, .. } = request;
        Ok((more, names, datapath.map(str::to_owned), nothing))
    }

    #[test]
    fn options_are_the_peers_in_any_order() {
        let dp0 = Some("dp0".to_owned());
        assert_eq!(read("dp0"), Ok((false, None, dp0.clone(), false)));
        assert_eq!(read("filter=ip -m dp0 --no-names"), Ok((true, Some(false), dp0, false)));
        assert_eq!(read("--names type=ovs,tc"), Ok((false, Some(true), None, false)));
        assert_eq!(read("type=tc,offloaded"), Ok((false, None, None, true)));
        for (words, why) in [
            ("-x", "'-x' is none of [-m"),
            ("dp0 dp1", "'dp1' is none of"),
            ("fliter=ip", "'fliter=ip' is none of"),
            ("type=fast", "there are all, ovs, non-offloaded, tc"),
            ("pmd=1", "no PMD threads"),
            ("filter=ipx", "'ipx'"),
        ] {
            let err = read(words).unwrap_err();
            assert!(err.contains(why), "{words}: {err}");
        }
    }
}
