//! A panel with a line for each series over time, and their names below.

use super::SCRAPE_EVERY;
use super::dashboard::Panel;
use super::draw::{self, Area, Line};
use super::prometheus::Span;
use super::units::{self, Scale};
use anyhow::Result;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const LABEL_SIZE: u32 = 21;
const AXIS_WIDTH: u32 = 112;
const AXIS_HEIGHT: u32 = 32;
const LINE_WIDTH: u32 = 2;
/// Of a row of names, and of the mark before a name with the space around it.
const ROW_HEIGHT: u32 = 28;
const MARK_WIDTH: u32 = 64;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

pub(super) fn draw(area: &Area<'_>, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    let (width, height) = area.dim_in_pixel();
    let widths: Vec<u32> =
        lines.iter().map(|line| name_width(area, line)).collect::<Result<_>>()?;
    let places = places(&widths, width);
    let rows = places.last().map_or(0, |(_, row)| row + 1);
    let (plot, names) = area.split_vertically(height - rows * ROW_HEIGHT);
    for (index, (line, (x, row))) in lines.iter().zip(places).enumerate() {
        draw_name(&names, line, (x, row * ROW_HEIGHT), index)?;
    }
    let bands = bands(lines, panel.is_stacked());
    let highest = bands.iter().flatten().map(|point| point.top).fold(0.0, f64::max);
    let scale = Scale::of(&panel.field().unit, highest)?;
    let low = panel.field().min.unwrap_or_else(|| draw::extremes(lines).0) / scale.by;
    // Room above the highest point; and a line of zeros has an axis too.
    let high = if highest > low { highest / scale.by * 1.08 } else { low + 1.0 };
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(AXIS_HEIGHT)
        .y_label_area_size(AXIS_WIDTH)
        .margin_right(draw::PADDING)
        .build_cartesian_2d(span.from..span.to, low..high)?;
    draw_axes(&mut chart, scale)?;
    let fill_percent = panel.field().custom.fill_opacity;
    bands.iter().enumerate().try_for_each(|(index, band)| {
        draw_band(&mut chart, band, scale, fill_percent, draw::color_of_series(index))
    })
}

fn draw_axes(chart: &mut Chart<'_, '_>, scale: Scale) -> Result<()> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(draw::GRID)
        .axis_style(draw::GRID)
        .label_style(draw::style(LABEL_SIZE, draw::FAINT))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|seconds| units::clock(*seconds))
        .y_label_formatter(&|value| scale.label(*value))
        .draw()?;
    Ok(())
}

/// A point of a line, and what it stands on.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: f64,
    base: f64,
    top: f64,
}

/// The points of each line; stacked, each stands on the one before.
fn bands(lines: &[Line], stacked: bool) -> Vec<Vec<Point>> {
    let mut bands: Vec<Vec<Point>> = Vec::new();
    for line in lines {
        let below = bands.last().filter(|_| stacked);
        let base = |at: f64| below?.iter().find(|point| point.at >= at).map(|point| point.top);
        let point = |(at, value): &(f64, f64)| {
            let base = base(*at).unwrap_or(0.0);
            Point { at: *at, base, top: base + value }
        };
        let band = line.points.iter().map(point).collect();
        bands.push(band);
    }
    bands
}

/// The parts of a band without a gap: as in Grafana, nothing is drawn where nothing was known.
fn unbroken(band: &[Point]) -> impl Iterator<Item = &[Point]> {
    band.chunk_by(|a, b| b.at - a.at < 1.5 * SCRAPE_EVERY.as_secs_f64())
}

fn draw_band(
    chart: &mut Chart<'_, '_>,
    band: &[Point],
    scale: Scale,
    fill_percent: f64,
    color: RGBColor,
) -> Result<()> {
    for part in unbroken(band) {
        let line = part.iter().map(|point| (point.at, point.top / scale.by));
        if fill_percent > 0.0 {
            let ground = part.iter().rev().map(|point| (point.at, point.base / scale.by));
            let outline: Vec<_> = line.clone().chain(ground).collect();
            chart.draw_series([Polygon::new(outline, color.mix(fill_percent / 100.0))])?;
        }
        chart.draw_series(LineSeries::new(line, color.stroke_width(LINE_WIDTH)))?;
    }
    Ok(())
}

fn name_width(area: &Area<'_>, line: &Line) -> Result<u32> {
    let style = draw::style(LABEL_SIZE, draw::TEXT);
    Ok(area.estimate_text_size(&line.name, &style)?.0 + MARK_WIDTH)
}

/// Places for names of these widths: how far to the right, and in which row.
fn places(widths: &[u32], room: u32) -> Vec<(u32, u32)> {
    let (mut x, mut row) = (0, 0);
    let place = |width: &u32| {
        if x > 0 && x + width > room {
            (x, row) = (0, row + 1);
        }
        let place = (x, row);
        x += width;
        place
    };
    widths.iter().map(place).collect()
}

fn draw_name(names: &Area<'_>, line: &Line, (x, y): (u32, u32), index: usize) -> Result<()> {
    let (x, middle) = (x.cast_signed(), (y + ROW_HEIGHT / 2).cast_signed());
    let mark = Rectangle::new(
        [(x + 8, middle - 2), (x + 30, middle + 2)],
        draw::color_of_series(index).filled(),
    );
    names.draw(&mark)?;
    let style = draw::style(LABEL_SIZE, draw::TEXT).pos(Pos::new(HPos::Left, VPos::Center));
    names.draw_text(&line.name, &style, (x + 38, middle))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_on_in_the_next_row() {
        assert_eq!(places(&[40, 50, 30, 120], 100), [(0, 0), (40, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn stacked_lines_stand_on_each_other() {
        let line = |value| Line { name: String::new(), points: vec![(1.0, value), (2.0, value)] };
        let tops = |stacked| -> Vec<f64> {
            bands(&[line(1.0), line(2.0)], stacked).iter().map(|band| band[1].top).collect()
        };
        assert_eq!(tops(true), [1.0, 3.0]);
        assert_eq!(tops(false), [1.0, 2.0]);
    }

    #[test]
    fn a_line_has_gaps_where_it_has_no_values() {
        let point = |at| Point { at, base: 0.0, top: 1.0 };
        let band = [2.0, 4.0, 14.0, 16.0, 18.0].map(point);
        assert_eq!(unbroken(&band).map(<[_]>::len).collect::<Vec<_>>(), [2, 3]);
    }
}
