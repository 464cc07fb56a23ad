//! The screen as a picture for the documentation.

use std::fmt::Write as _;

use ratatui::style::{Color, Modifier};
use ratatui::text::Line;

/// Columns and rows of the screen that is drawn.
pub(super) const COLUMNS: usize = 80;
pub(super) const ROWS: usize = 24;
/// Pixels of a character.
const WIDTH: usize = 8;
const HEIGHT: usize = 17;
const MARGIN: usize = 8;

/// The lines as SVG: text on a dark ground, every character in its cell.
pub(super) fn svg(lines: &[Line<'_>]) -> String {
    let (width, height) = (COLUMNS * WIDTH + 2 * MARGIN, ROWS * HEIGHT + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#1c1c1c\"/>\n"
    );
    for (row, line) in lines.iter().take(ROWS).enumerate() {
        let top = MARGIN + row * HEIGHT;
        let reversed = line.style.add_modifier.contains(Modifier::REVERSED);
        if reversed {
            let _ = writeln!(
                svg,
                "<rect x=\"0\" y=\"{top}\" width=\"100%\" height=\"{HEIGHT}\" fill=\"#d0d0d0\"/>"
            );
        }
        let mut column = 0;
        for span in &line.spans {
            let text: String = span.content.chars().take(COLUMNS.saturating_sub(column)).collect();
            let colour = if reversed { "#1c1c1c" } else { colour(span.style.fg.or(line.style.fg)) };
            let len = text.chars().count();
            // The length holds the columns in place whatever the font.
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" textLength=\"{}\" fill=\"{colour}\" xml:space=\"preserve\">{}</text>",
                MARGIN + column * WIDTH,
                top + 13,
                len * WIDTH,
                escape(&text),
            );
            column += len;
        }
    }
    svg + "</svg>\n"
}

fn colour(colour: Option<Color>) -> &'static str {
    match colour {
        Some(Color::Red) => "#ff6c6b",
        Some(Color::Cyan) => "#5fd7d7",
        _ => "#d0d0d0",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::style::Stylize as _;

    #[test]
    fn each_character_has_its_place_and_colour() {
        let svg = svg(&[Line::from("title").reversed(), Line::from(vec!["a<".into(), "3".red()])]);
        assert!(svg.contains("fill=\"#1c1c1c\" xml:space=\"preserve\">title</text>"), "{svg}");
        assert!(svg.contains(">a&lt;</text>") && svg.contains("fill=\"#ff6c6b\""), "{svg}");
        assert!(svg.contains(&format!("x=\"{}\"", MARGIN + 2 * WIDTH)), "{svg}");
    }
}
