//! What is measured, and what a figure must be.

use super::figures::FIGURES;

/// Whose time a figure is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Clock {
    /// One CPU; an instruction takes 1 ns: figures repeat within 1 to 3 %
    Instructions,
    /// A thread of the host for each CPU: only ratios within a repetition mean something
    Parallel,
    /// Machines of 1 to 64 CPUs, all on one thread of the host, in turn
    Sizes,
}

impl Clock {
    pub(crate) const ALL: [Self; 3] = [Self::Instructions, Self::Parallel, Self::Sizes];
}

/// How a figure is written, and which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds, which are instructions; shown in thousands. Less is better.
    Instructions,
    /// A count for each upcall. Less is better.
    PerUpcall,
    /// Of all packets. Less is better.
    Percent,
    /// Milliseconds. Less is better.
    Milliseconds,
    /// Mebibytes. Less is better.
    Mebibytes,
    /// A number of things. Less is better.
    Count,
    /// Times something else. Less is better.
    Times,
    /// A share that is to stay. More is better.
    Share,
    /// Upcalls a second. More is better.
    PerSecond,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Instructions => "k instr",
            Self::PerUpcall => "/upcall",
            Self::Percent => "%",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Count => "",
            Self::Times => "times",
            Self::Share => "share",
            Self::PerSecond => "/s",
        }
    }

    /// The value as it is shown.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Instructions => format!("{:.2}", value / 1000.0),
            Self::PerUpcall | Self::Share => format!("{value:.3}"),
            Self::Percent | Self::Times => format!("{value:.2}"),
            Self::Mebibytes => format!("{value:.1}"),
            Self::Count | Self::PerSecond | Self::Milliseconds => format!("{value:.0}"),
        }
    }

    /// Whether `value` is on the right side of `bound`.
    pub(crate) fn meets(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Share | Self::PerSecond => value >= bound,
            _ => value <= bound,
        }
    }

    /// The sign of a bound.
    pub(crate) fn sign(self) -> char {
        match self {
            Self::Share | Self::PerSecond => '≥',
            _ => '≤',
        }
    }
}

/// One figure of a measure. A measure of the guest has one or more of them.
#[derive(Debug)]
pub(crate) struct Figure {
    /// The guest's name of the measure.
    pub(crate) measure: &'static str,
    /// Its key in the guest's output.
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) clock: Clock,
    pub(crate) unit: Unit,
    pub(crate) bounds: Bounds,
    /// Whether the gate compares it with the stored baseline.
    pub(crate) gate: bool,
}

/// What the figure of upcalld must be; `None` is not asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounds {
    /// So many times that of ovs-vswitchd: at most, or at least where more is better.
    pub(crate) peer: Option<f64>,
    /// So many times the floor's.
    pub(crate) floor: Option<f64>,
    /// This.
    pub(crate) value: Option<f64>,
}

/// Names of the measures of a clock that `only` names (all, if it names none), in order.
pub(crate) fn measures(clock: Clock, only: &[String]) -> Vec<&'static str> {
    let mut names: Vec<&str> = FIGURES
        .iter()
        .filter(|figure| figure.clock == clock)
        .map(|figure| figure.measure)
        .filter(|name| only.is_empty() || only.iter().any(|wanted| wanted == name))
        .collect();
    names.dedup();
    names
}

/// Names of the measures that the gate needs.
pub(crate) fn gate_measures() -> Vec<&'static str> {
    let mut names: Vec<&str> = FIGURES.iter().filter(|f| f.gate).map(|f| f.measure).collect();
    names.dedup();
    names
}

/// All names, for the command line.
pub(crate) fn names() -> Vec<&'static str> {
    Clock::ALL.iter().flat_map(|clock| measures(*clock, &[])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measure_has_one_clock_and_its_figures_stand_together() {
        let all = names();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len(), "{all:?}");
        assert!(gate_measures().iter().all(|name| all.contains(name)));
    }

    #[test]
    fn more_is_better_for_rates_alone() {
        assert!(Unit::PerSecond.meets(2.3, 2.2) && !Unit::Share.meets(0.8, 0.9));
        assert!(Unit::Percent.meets(0.0, 0.0) && !Unit::Instructions.meets(0.5, 0.45));
    }
}
