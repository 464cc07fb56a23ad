//! Upcalls that are answered from the plan of installs.

use super::*;

/// Packets of this length teach the handler something.
const LESSON: usize = 90;

/// Sends everything to port 2, or drops what is shorter than 60 bytes, and counts how often it is asked.
#[derive(Default)]
struct Counting {
    seen: Mutex<Vec<usize>>,
}

impl Handler for Counting {
    fn upcall(&self, upcall: &Upcall<'_>, verdict: &mut Verdict) {
        let len = upcall.packet().len();
        self.seen.lock().unwrap().push(len);
        if len >= 60 {
            verdict.output(2);
        }
        verdict.install(MatchFields::IN_PORT | MatchFields::ETH_SRC);
        if len == LESSON {
            verdict.revalidate();
        }
    }
}

struct Asked {
    bench: Bench,
    handler: Arc<Counting>,
}

impl Asked {
    fn new(install: InstallPolicy, answer_from_plan: bool) -> Self {
        let handler = Arc::new(Counting::default());
        let (limits, asked) = (Limits::default(), Box::new(handler.clone()));
        let bench = Bench::build(asked, install, limits, answer_from_plan);
        Self { bench, handler }
    }

    /// Reads these datagrams in a round; gives the lengths that the handler was asked about.
    fn round(&mut self, datagrams: &[Vec<u8>]) -> Vec<usize> {
        self.bench.round(datagrams);
        std::mem::take(&mut *self.handler.seen.lock().unwrap())
    }

    fn counted(&self) -> (u64, u64, u64) {
        let ledger = self.bench.ledger.snapshot();
        assert!(ledger.balances());
        (ledger.executed, ledger.answered_from_plan, ledger.duplicate_misses)
    }
}

#[test]
fn the_handler_is_asked_once_while_the_install_is_on_its_way() {
    for install in [InstallPolicy::Wildcard, InstallPolicy::Exact] {
        let mut asked = Asked::new(install, true);
        let burst: Vec<_> = (60..80).map(upcall).collect();
        assert_eq!(asked.round(&burst), [60]);
        assert_eq!(asked.round(&[upcall(80), other_source(81), other_source(82)]), [81]);
        assert_eq!(asked.counted(), (23, 21, 21), "{install:?}");
        assert_eq!(asked.bench.ledger.flows_put.get(), 0, "the burst goes on: it is put off");
        pause();
        asked.round(&[]);
        assert_eq!(asked.bench.ledger.flows_put.get(), 2);
        assert_eq!(asked.round(&[upcall(83)]), [83], "the install is with the kernel");
    }
}

#[test]
fn the_handler_is_asked_about_each_if_it_wants_to_be() {
    let mut asked = Asked::new(InstallPolicy::Wildcard, false);
    let burst: Vec<_> = (60..80).map(upcall).collect();
    assert_eq!(asked.round(&burst), (60..80).collect::<Vec<_>>());
    assert_eq!(asked.counted(), (20, 0, 19));
    let mut asked = Asked::new(InstallPolicy::Never, true);
    assert_eq!(asked.round(&burst), (60..80).collect::<Vec<_>>(), "nothing is installed");
}

#[test]
fn what_was_learned_since_stops_an_answer() {
    let mut asked = Asked::new(InstallPolicy::Wildcard, true);
    let datagrams = [upcall(60), upcall(61), other_source(LESSON), upcall(62), upcall(63)];
    assert_eq!(asked.round(&datagrams), [60, LESSON, 62]);
    asked.bench.engine.shared.set_ports(Ports::new(vec![Port { number: 1, name: "p1".into() }]));
    assert_eq!(asked.round(&[upcall(64), upcall(65)]), [64]);
    asked.bench.engine.shared.set_ports(Ports::default());
    assert_eq!(asked.round(&[upcall(66), upcall(67)]), [66, 67], "nothing goes in by such a port");
}

#[test]
fn a_flow_that_drops_is_answered_too() {
    let mut asked = Asked::new(InstallPolicy::Wildcard, true);
    assert_eq!(asked.round(&[upcall(50), upcall(51)]), [50]);
    assert_eq!((asked.counted(), asked.bench.ledger.dropped.get()), ((0, 1, 1), 2));
}

#[test]
fn what_waited_is_answered_from_the_plan_of_its_worker() {
    let mut asked = Asked::new(InstallPolicy::Wildcard, true);
    asked.bench.source.spread = true;
    let _has_nothing_to_do = asked.bench.engine.shared().crew.join(Arc::default());
    let burst: Vec<_> = (60..66).map(upcall).collect();
    assert_eq!(asked.round(&burst), [60]);
    assert_eq!(asked.counted(), (6, 5, 5));
}

/// What is handed out may be any flow's that the install matches.
#[test]
fn an_install_waits_for_what_its_socket_has_handed_out() {
    let mut asked = Asked::new(InstallPolicy::Wildcard, true);
    assert_eq!(asked.round(&[upcall(60)]), [60]);
    asked.bench.source.spread = true;
    assert_eq!(asked.round(&[other_source(61)]), [61]);
    pause();
    assert_eq!(asked.bench.ledger.snapshot().flows_put, 0);
    asked.round(&[]);
    assert_eq!(asked.bench.ledger.snapshot().flows_put, 2);
}
