//! The dashboard as Grafana reads it: of its model what a picture shows. How fields are to be shown is read
//! strictly, so that the picture leaves nothing out that Grafana would show, and no word is in a wrong place.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// Grafana's grid is so many columns wide.
pub(super) const GRID_COLUMNS: u32 = 24;

#[derive(Debug, Deserialize)]
pub(super) struct Dashboard {
    pub(super) title: String,
    templating: Templating,
    pub(super) panels: Vec<Panel>,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

/// A variable that the user selects; those without a query for values are not in queries.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Variable {
    Query { name: String, query: VariableQuery },
    Datasource,
}

#[derive(Debug, Deserialize)]
struct VariableQuery {
    query: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Panel {
    pub(super) title: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) grid_pos: GridPos,
    pub(super) targets: Vec<Target>,
    field_config: FieldConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Stat,
    Timeseries,
}

/// Place and size in cells of the grid.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct GridPos {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) w: u32,
    pub(super) h: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) expr: String,
    legend_format: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldConfig {
    defaults: Field,
    /// There are none yet.
    #[serde(rename = "overrides")]
    _overrides: [IgnoredAny; 0],
}

/// How values are shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Field {
    pub(super) unit: String,
    pub(super) min: Option<f64>,
    #[serde(default)]
    pub(super) decimals: usize,
    #[serde(default)]
    pub(super) thresholds: Thresholds,
    #[serde(default)]
    pub(super) custom: Custom,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Thresholds {
    #[serde(rename = "mode")]
    _mode: Absolute,
    steps: Vec<Step>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Absolute {
    #[default]
    Absolute,
}

#[derive(Debug, Deserialize)]
struct Step {
    color: String,
    /// The first step has none.
    value: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Custom {
    /// In percent.
    pub(super) fill_opacity: f64,
    stacking: Stacking,
}

#[derive(Debug, Default, Deserialize)]
struct Stacking {
    mode: StackingMode,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StackingMode {
    #[default]
    None,
    Normal,
}

impl Dashboard {
    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("the dashboard says what the pictures cannot show")
    }

    /// What to ask Prometheus for the values of each variable: its name, metric and label.
    pub(super) fn variables(&self) -> Result<Vec<(&str, &str, &str)>> {
        let variables = self.templating.list.iter().filter_map(|variable| match variable {
            Variable::Query { name, query } => Some((name, query)),
            Variable::Datasource => None,
        });
        variables
            .map(|(name, query)| {
                let (metric, label) = query.label_values().with_context(|| {
                    format!("variable {name}: {} is no label_values(metric, label)", query.query)
                })?;
                Ok((name.as_str(), metric, label))
            })
            .collect()
    }
}

impl VariableQuery {
    /// Metric and label of `label_values(metric, label)`.
    fn label_values(&self) -> Option<(&str, &str)> {
        let words = self.query.strip_prefix("label_values(")?.strip_suffix(')')?;
        words.split_once(',').map(|(metric, label)| (metric.trim(), label.trim()))
    }
}

impl Panel {
    pub(super) fn field(&self) -> &Field {
        &self.field_config.defaults
    }

    pub(super) fn is_stacked(&self) -> bool {
        self.field().custom.stacking.mode == StackingMode::Normal
    }
}

impl Target {
    /// The query with its variables filled in.
    pub(super) fn query(&self, values: &[(String, String)]) -> Result<String> {
        let mut query = self.expr.clone();
        for (name, value) in values {
            query = query.replace(&format!("${name}"), value);
        }
        ensure!(!query.contains('$'), "{query}: the pictures know no value of this variable");
        Ok(query)
    }

    /// The name of a series: what is in double braces is a label of it, or nothing.
    pub(super) fn legend(&self, labels: &BTreeMap<String, String>) -> String {
        let mut parts = self.legend_format.split("{{");
        let mut name = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (label, rest) = part.split_once("}}").unwrap_or((part, ""));
            name += labels.get(label.trim()).map_or("", String::as_str);
            name += rest;
        }
        name.trim().to_owned()
    }
}

impl Thresholds {
    /// The colour of a value: that of the highest step that it reaches.
    pub(super) fn color(&self, value: f64) -> Option<&str> {
        let reached = |step: &&Step| step.value.is_none_or(|least| value >= least);
        self.steps.iter().rev().find(reached).map(|step| step.color.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;
    use serde_json::json;

    fn target(expr: &str, legend: &str) -> Target {
        serde_json::from_value(json!({"expr": expr, "legendFormat": legend})).unwrap()
    }

    fn ours() -> String {
        std::fs::read_to_string(cmd::workspace().join(super::super::DASHBOARD)).unwrap()
    }

    #[test]
    fn our_dashboard_is_understood() {
        let dashboard = Dashboard::parse(&ours()).unwrap();
        assert_eq!(dashboard.variables().unwrap(), [("datapath", "upcalld_up", "datapath")]);
        assert!(dashboard.panels.iter().any(|panel| panel.kind == Kind::Stat));
        assert!(dashboard.panels.iter().any(Panel::is_stacked));
        for panel in &dashboard.panels {
            assert!(panel.grid_pos.x + panel.grid_pos.w <= GRID_COLUMNS, "{}", panel.title);
        }
    }

    #[test]
    fn no_panels_overlap() {
        let panels = Dashboard::parse(&ours()).unwrap().panels;
        for (index, a) in panels.iter().enumerate() {
            for b in &panels[index + 1..] {
                let (p, q) = (a.grid_pos, b.grid_pos);
                let apart = p.x + p.w <= q.x || q.x + q.w <= p.x;
                assert!(apart || p.y + p.h <= q.y || q.y + q.h <= p.y, "{} {}", a.title, b.title);
            }
        }
    }

    #[test]
    fn a_word_in_a_wrong_place_is_refused() {
        let misplaced = ours().replacen("\"unit\"", "\"units\"", 1);
        let refused = format!("{:#}", Dashboard::parse(&misplaced).unwrap_err());
        assert!(refused.contains("units"), "{refused}");
    }

    #[test]
    fn variables_are_filled_in_and_none_is_left() {
        let values = [("d".to_owned(), "a|b".to_owned()), ("__rate".into(), "4s".into())];
        let query = target("rate(x{d=~\"$d\"}[$__rate])", "").query(&values).unwrap();
        assert_eq!(query, "rate(x{d=~\"a|b\"}[4s])");
        assert!(target("x[$other]", "").query(&values).is_err());
    }

    #[test]
    fn a_legend_has_labels_in_it() {
        let labels = BTreeMap::from([("port".to_owned(), "p0".to_owned())]);
        let legend = |format: &str| target("x", format).legend(&labels);
        assert_eq!(legend("{{port}} in"), "p0 in");
        assert_eq!(legend("{{ port }}{{port}}"), "p0p0");
        assert_eq!(legend("{{datapath}} resident"), "resident");
    }

    #[test]
    fn a_value_has_the_colour_of_its_step() {
        let steps = json!([{"color": "green", "value": null}, {"color": "red", "value": 1}]);
        let steps = json!({"mode": "absolute", "steps": steps});
        let thresholds: Thresholds = serde_json::from_value(steps).unwrap();
        assert_eq!([0.0, 1.0, 9.0].map(|v| thresholds.color(v).unwrap()), ["green", "red", "red"]);
        assert_eq!(Thresholds::default().color(1.0), None);
    }
}
