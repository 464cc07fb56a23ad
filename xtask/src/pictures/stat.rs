//! A panel with the last value in large letters, and how it came to that below.

use super::dashboard::Panel;
use super::draw::{self, Area, Line};
use super::prometheus::Span;
use super::units::Scale;
use anyhow::{Context, Result};
use plotters::prelude::*;

const VALUE_SIZE: u32 = 62;
const NAME_SIZE: u32 = 22;
/// Where nothing else is said.
const COLOR: &str = "green";

/// A tile for each series; named, where there are several.
pub(super) fn draw(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    for (tile, line) in area.split_evenly((1, lines.len())).iter().zip(lines) {
        tile_of(tile, panel, line, span)?;
        if lines.len() > 1 {
            tile.draw_text(&line.name, &draw::style(NAME_SIZE, draw::FAINT), (0, 0))?;
        }
    }
    Ok(())
}

fn tile_of(tile: &Area<'_>, panel: &Panel, line: &Line, span: Span) -> Result<()> {
    let Some((_, value)) = line.points.last() else { return Ok(()) };
    let field = panel.field();
    let name = field.thresholds.color(*value).unwrap_or(COLOR);
    let color = draw::named_color(name).with_context(|| {
        format!("panel {}: colour {name} is not known: add it to draw.rs", panel.title)
    })?;
    let text = Scale::of(&field.unit, *value)?.text(*value, field.decimals);
    let (width, height) = tile.dim_in_pixel();
    let (value_area, spark_area) = tile.split_vertically(height * 2 / 3);
    sparkline(&spark_area, line, span, color)?;
    let centre = (width.cast_signed() / 2, height.cast_signed() / 3);
    value_area.draw_text(&text, &draw::style(VALUE_SIZE, color).pos(draw::CENTRE), centre)?;
    Ok(())
}

fn sparkline(area: &Area<'_>, line: &Line, span: Span, color: RGBColor) -> Result<()> {
    let (low, high) = draw::extremes(std::slice::from_ref(line));
    // A line that does not move lies at the bottom.
    let high = high.max(low + f64::EPSILON.max(low.abs() / 10.0));
    let mut chart = ChartBuilder::on(area).build_cartesian_2d(span.from..span.to, low..high)?;
    let points = line.points.iter().copied();
    let series = AreaSeries::new(points, low, color.mix(0.2)).border_style(color.stroke_width(2));
    chart.draw_series(series)?;
    Ok(())
}
