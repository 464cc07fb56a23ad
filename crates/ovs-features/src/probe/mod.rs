//! Everything this host can do for a dispatcher, with evidence.
//!
//! [`Probe`] asks and remembers; [`Report`] is all of it at one moment. Asking changes nothing on a
//! datapath that is there: see `scratch` for where features are tried.

mod actions;
mod bits;
mod families;
mod feature;
mod report;
mod scratch;
mod why;

use std::collections::HashMap;
use std::path::Path;

use ovs_datapath::{Control, ControlError};
use ovs_wire::datapath::Datapath;
use ovs_wire::family::Family;

pub(crate) use actions::try_flow;
pub use feature::{Feature, Group};
pub use report::{DatapathReport, Report};
pub use scratch::Place;

use crate::ask::OnKernel;
use crate::finding::{Cause, Facts, Finding, Support};
use crate::host::RecvBuffer;

/// An answer about one feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The feature.
    pub feature: Feature,
    /// What was found.
    pub finding: Finding,
}

impl Answer {
    /// What follows from it.
    pub fn consequence(&self) -> &'static str {
        self.feature.consequence(self.finding.support)
    }
}

/// Asks the kernel what it can do, and remembers what cannot change while it runs.
///
/// Only conclusive answers are remembered: what was refused for want of a privilege, or because the
/// module was not there, is asked again the next time.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    known: HashMap<Feature, Finding>,
    place: Option<Place>,
}

impl Probe {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is known of a feature without asking.
    pub fn known(&self, feature: Feature) -> Option<&Finding> {
        self.known.get(&feature)
    }

    /// Where features were tried, if they were.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// Asks for every feature, in the order of the report. Works in the network namespace of the
    /// calling thread, inside a tokio runtime. Loads the module if the kernel can.
    pub async fn answers(&mut self) -> Vec<Answer> {
        self.ask(&Feature::all().collect::<Vec<_>>()).await
    }

    /// Asks for one feature, if it is not known.
    pub async fn answer(&mut self, feature: Feature) -> Answer {
        self.ask(&[feature]).await.remove(0)
    }

    async fn ask(&mut self, wanted: &[Feature]) -> Vec<Answer> {
        let mut found: HashMap<Feature, Finding> = self.known.clone();
        let open = |found: &HashMap<_, _>, feature: &Feature| !found.contains_key(feature);
        if wanted.iter().any(|f| open(&found, f) && f.group() != Group::Sockets) {
            let was_loaded = families::module_is_loaded(Path::new("/"));
            let control = Control::open().await;
            found.extend(without_privilege(&control, was_loaded).await);
            if wanted.iter().any(|f| f.needs_scratch() && open(&found, f)) {
                self.ask_scratch(&control, &mut found).await;
            }
        }
        if wanted.iter().any(|f| open(&found, f)) {
            found.insert(Feature::ForcedBuffer, forced_buffer(RecvBuffer::probe()));
        }
        self.remember(&found);
        let mut take =
            |feature: Feature| found.remove(&feature).unwrap_or_else(|| unasked(feature));
        wanted.iter().map(|f| Answer { feature: *f, finding: take(*f) }).collect()
    }

    /// Tries features on a datapath of our own.
    async fn ask_scratch(
        &mut self,
        control: &Result<Control, ControlError>,
        found: &mut HashMap<Feature, Finding>,
    ) {
        let all_open = |err: &ControlError| -> Vec<_> {
            let tried = Feature::all().filter(|feature| feature.needs_scratch());
            tried.map(|feature| (feature, Finding::open(feature.title(), err))).collect()
        };
        let answers = match control {
            Err(err) => all_open(err),
            Ok(_) => match scratch::with_datapath(on_scratch).await {
                Err(err) => all_open(&err),
                Ok((answers, place)) => {
                    self.place = Some(place);
                    answers
                }
            },
        };
        for (feature, finding) in answers {
            found.entry(feature).or_insert(finding);
        }
    }

    /// A module that is absent may be installed later, so that is not remembered.
    fn remember(&mut self, found: &HashMap<Feature, Finding>) {
        let lasting = |feature: &Feature, finding: &Finding| match feature.group() {
            Group::Module | Group::Families => finding.support == Support::Available,
            _ => finding.support.is_conclusive(),
        };
        let lasting = found.iter().filter(|(feature, finding)| lasting(feature, finding));
        self.known = lasting.map(|(feature, finding)| (*feature, finding.clone())).collect();
    }
}

fn unasked(feature: Feature) -> Finding {
    feature.finding(Support::Undetermined(Cause::NoAnswer), "it was not asked for")
}

/// Module, families and attributes: a lookup in the controller, which anyone may do.
async fn without_privilege(
    control: &Result<Control, ControlError>,
    was_loaded: bool,
) -> Vec<(Feature, Finding)> {
    let release = crate::kernel_release();
    let on_disk = families::module_on_disk(Path::new("/"), &release);
    let lookup = control.as_ref().map(|_| ());
    let module = families::conclude_module(was_loaded, lookup, &on_disk, &release);
    let mut found = vec![(Feature::Module, module)];
    match control {
        Ok(control) => found.extend(known_families(control).await),
        Err(err) => {
            let open = |feature: Feature| (feature, Finding::open(feature.title(), err));
            let told = |f: &Feature| matches!(f.group(), Group::Families | Group::Attributes);
            found.extend(Feature::all().filter(told).map(open));
        }
    }
    found
}

async fn known_families(control: &Control) -> Vec<(Feature, Finding)> {
    let all = control.families();
    let mut found = Vec::new();
    let mut add = |feature, name, lookup: Result<Option<&Family>, &ControlError>| {
        found.push((feature, families::conclude_family(feature, name, lookup)));
    };
    for (feature, family) in [
        (Feature::DatapathFamily, &all.datapath),
        (Feature::VportFamily, &all.vport),
        (Feature::FlowFamily, &all.flow),
        (Feature::PacketFamily, &all.packet),
    ] {
        add(feature, &family.name, Ok(Some(family)));
    }
    for (feature, name) in
        [(Feature::MeterFamily, "ovs_meter"), (Feature::CtLimitFamily, "ovs_ct_limit")]
    {
        add(feature, name, control.family(name).await.as_ref().map(Option::as_ref));
    }
    let attrs = |family: &Family, rows: &[(Feature, u32, &'static str)]| -> Vec<_> {
        rows.iter().map(|row| (row.0, families::conclude_attr(family, *row))).collect()
    };
    found.extend(attrs(&all.packet, &families::PACKET_ATTRS));
    found.extend(attrs(&all.vport, &families::VPORT_ATTRS));
    found.extend(attrs(&all.datapath, &families::DATAPATH_ATTRS));
    found.extend(families::rule_out_per_cpu(&all.datapath));
    found
}

/// All that is asked of a datapath of our own.
async fn on_scratch(control: &Control, dp: &Datapath) -> Vec<(Feature, Finding)> {
    let ask = OnKernel { control, dp };
    let mut found = bits::probe(&ask).await;
    for (feature, mut finding) in actions::probe(&ask).await {
        if feature == Feature::Meters && finding.support == Support::Available {
            finding.evidence.push_str(&meters(control, dp).await);
        }
        found.push((feature, finding));
    }
    found
}

/// How many meters there can be, as an addition to the evidence.
async fn meters(control: &Control, dp: &Datapath) -> String {
    let Ok(Some(family)) = control.family("ovs_meter").await else { return String::new() };
    match actions::meters_max(control, dp.ifindex, &family).await {
        Ok(Some(max)) => format!("; {max} meters at most"),
        _ => String::new(),
    }
}

fn forced_buffer(probed: std::io::Result<RecvBuffer>) -> Finding {
    let feature = Feature::ForcedBuffer;
    let request = Facts::request("setsockopt(SO_RCVBUFFORCE)");
    let buffer = match probed {
        Ok(buffer) => buffer,
        Err(err) => {
            return feature.finding(Support::Undetermined(Cause::NoAnswer), err.to_string());
        }
    };
    let plain = buffer.plain_bytes;
    match (buffer.forced_bytes, buffer.force_errno) {
        (Some(forced), _) => {
            let evidence = format!("SO_RCVBUFFORCE reaches {forced} bytes, SO_RCVBUF {plain}");
            feature.finding(Support::Available, evidence).with(request)
        }
        // sk_setsockopt (net/core/sock.c) asks for CAP_NET_ADMIN in the initial user namespace.
        (None, errno) => {
            let needs = Support::Undetermined(Cause::Needs("CAP_NET_ADMIN"));
            let evidence =
                format!("SO_RCVBUFFORCE is refused (EPERM), SO_RCVBUF reaches {plain} bytes");
            feature.finding(needs, evidence).with(Facts { errno, ..request })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(feature: Feature, support: Support) -> bool {
        let mut probe = Probe::new();
        probe.remember(&HashMap::from([(feature, feature.finding(support, "x"))]));
        probe.known(feature).is_some()
    }

    #[test]
    fn only_what_cannot_change_is_remembered() {
        assert!(remembered(Feature::PerCpu, Support::Available));
        assert!(remembered(Feature::PerCpu, Support::Unavailable));
        let eperm = Support::Undetermined(Cause::Needs("CAP_NET_ADMIN"));
        assert!(!remembered(Feature::PerCpu, eperm));
        assert!(remembered(Feature::Module, Support::Available));
        assert!(!remembered(Feature::Module, Support::Unavailable), "it may be installed");
        assert!(!remembered(Feature::MeterFamily, Support::Unavailable));
    }

    #[tokio::test]
    async fn every_feature_is_answered_on_any_host_and_the_known_are_not_asked() {
        let mut probe = Probe::new();
        let answers = probe.answers().await;
        let asked: Vec<_> = answers.iter().map(|answer| answer.feature).collect();
        assert_eq!(asked, Feature::all().collect::<Vec<_>>());
        assert!(answers.iter().all(|answer| !answer.finding.evidence.contains("was not asked")));
        let told = Feature::Hash.finding(Support::Available, "told by a test");
        probe.known.insert(Feature::Hash, told.clone());
        assert_eq!(probe.answer(Feature::Hash).await.finding, told);
    }

    #[test]
    fn a_refused_force_is_a_question_of_privilege() {
        let buffer = RecvBuffer { force_errno: Some(1), plain_bytes: 8, ..RecvBuffer::default() };
        let finding = forced_buffer(Ok(buffer));
        assert_eq!(finding.support.cause(), Some(Cause::Needs("CAP_NET_ADMIN")));
        assert_eq!(finding.facts.errno, Some(1));
        let buffer = RecvBuffer { forced_bytes: Some(99), ..RecvBuffer::default() };
        assert_eq!(forced_buffer(Ok(buffer)).support, Support::Available);
    }
}
