//! The dashboard as SVG: panels at their places of the grid, in Grafana's dark colours.

use super::dashboard::{GRID_COLUMNS, GridPos, Kind, Panel};
use super::prometheus::Span;
use super::{stat, timeseries};
use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of the picture; a page shows it at about half that width.
const WIDTH: u32 = 1800;
const HEAD: u32 = 64;
const CELL_HEIGHT: u32 = 40;
const GAP: u32 = 10;
pub(super) const PADDING: u32 = 16;

const CANVAS: RGBColor = RGBColor(17, 18, 23);
const PANEL: RGBColor = RGBColor(24, 27, 31);
pub(super) const GRID: RGBColor = RGBColor(44, 48, 54);
pub(super) const TEXT: RGBColor = RGBColor(204, 204, 220);
pub(super) const FAINT: RGBColor = RGBColor(142, 143, 155);

/// Colours that thresholds name.
const NAMED: [(&str, RGBColor); 5] = [
    ("green", RGBColor(115, 191, 105)),
    ("orange", RGBColor(255, 152, 48)),
    ("red", RGBColor(242, 73, 92)),
    ("blue", RGBColor(87, 148, 242)),
    ("yellow", RGBColor(250, 222, 42)),
];
/// Grafana's classic palette, for series in their order.
const PALETTE: [RGBColor; 10] = [
    RGBColor(115, 191, 105),
    RGBColor(242, 204, 12),
    RGBColor(138, 184, 255),
    RGBColor(255, 120, 10),
    RGBColor(242, 73, 92),
    RGBColor(87, 148, 242),
    RGBColor(184, 119, 217),
    RGBColor(112, 93, 160),
    RGBColor(55, 135, 45),
    RGBColor(250, 222, 42),
];

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A series with its name.
pub(super) struct Line {
    pub(super) name: String,
    /// Times and values.
    pub(super) points: Vec<(f64, f64)>,
}

/// The whole picture. `about` stands at the right end of its head.
pub(super) fn svg(
    title: &str,
    about: &str,
    panels: &[(&Panel, Vec<Line>)],
    span: Span,
) -> Result<String> {
    let rows = panels.iter().map(|(panel, _)| panel.grid_pos.y + panel.grid_pos.h).max();
    let height = HEAD + rows.unwrap_or(0) * CELL_HEIGHT + GAP;
    let mut svg = String::new();
    let whole = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    whole.fill(&CANVAS)?;
    let (margin, middle) = ((2 * GAP).cast_signed(), (HEAD / 2).cast_signed());
    let left = Pos::new(HPos::Left, VPos::Center);
    whole.draw_text(title, &style(32, TEXT).pos(left), (margin, middle))?;
    let right = Pos::new(HPos::Right, VPos::Center);
    whole.draw_text(about, &style(22, FAINT).pos(right), (WIDTH.cast_signed() - margin, middle))?;
    for (panel, lines) in panels {
        let ((x, y), size) = rectangle(panel.grid_pos);
        draw_panel(&whole.clone().shrink((x, y), size), panel, lines, span)?;
    }
    whole.present()?;
    drop(whole);
    Ok(svg + "\n")
}

/// Corner and size of a panel in pixels.
fn rectangle(at: GridPos) -> ((u32, u32), (u32, u32)) {
    let column = |cells: u32| GAP / 2 + cells * (WIDTH - GAP) / GRID_COLUMNS;
    let (left, right) = (column(at.x) + GAP / 2, column(at.x + at.w) - GAP / 2);
    ((left, HEAD + at.y * CELL_HEIGHT), (right - left, at.h * CELL_HEIGHT - GAP))
}

fn draw_panel(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    area.fill(&PANEL)?;
    let corner = (PADDING.cast_signed(), PADDING.cast_signed());
    area.draw_text(&panel.title, &style(25, TEXT), corner)?;
    let area = area.margin(PADDING + 34, PADDING / 2, PADDING, PADDING);
    if lines.iter().all(|line| line.points.is_empty()) {
        let (width, height) = area.dim_in_pixel();
        let middle = (width.cast_signed() / 2, height.cast_signed() / 2);
        area.draw_text("No data", &style(26, FAINT).pos(CENTRE), middle)?;
        return Ok(());
    }
    match panel.kind {
        Kind::Stat => stat::draw(&area, panel, lines, span),
        Kind::Timeseries => timeseries::draw(&area, panel, lines, span),
    }
}

pub(super) const CENTRE: Pos = Pos { h_pos: HPos::Center, v_pos: VPos::Center };

pub(super) fn style(size: u32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color)
}

pub(super) fn color_of_series(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// A colour by its name.
pub(super) fn named_color(name: &str) -> Option<RGBColor> {
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, color)| *color)
}

/// The smallest and the largest value.
pub(super) fn extremes(lines: &[Line]) -> (f64, f64) {
    let values = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_of_a_row_share_its_width_with_gaps() {
        let at = |x, w| rectangle(GridPos { x, y: 0, w, h: 4 });
        let (((left, top), size), ((right, _), wide)) = (at(0, 12), at(12, 12));
        assert_eq!((left, top, size.1), (GAP, HEAD, 4 * CELL_HEIGHT - GAP));
        assert_eq!(right - (left + size.0), GAP);
        assert_eq!(right + wide.0, WIDTH - GAP);
    }

    #[test]
    fn extremes_are_of_all_lines() {
        let line = |values: &[f64]| Line {
            name: String::new(),
            points: values.iter().map(|value| (0.0, *value)).collect(),
        };
        assert_eq!(extremes(&[line(&[2.0, 5.0]), line(&[]), line(&[-1.0])]), (-1.0, 5.0));
    }
}
