//! The plot: for each row with a first runtime to compare with, one bar for
//! each runtime, whose length is its ratio to the first. The SVG is written by
//! hand, since a plain bar chart needs no library.

use std::fmt::Write as _;

use crate::report::{Report, Row, Summary};

const COLOURS: [&str; 6] = ["#9aa5b1", "#2f6f8f", "#c7853d", "#5b8c5a", "#8e5572", "#404e5c"];
const LEFT: f64 = 300.0;
const BAR: f64 = 13.0;
const FULL: f64 = 420.0;
/// The ratio of a bar as wide as the picture. Longer ones are cut and keep
/// their label.
const WIDEST: f64 = 1.5;

/// Returns the whole picture.
pub fn svg(report: &Report, machine: &str) -> String {
    let rows: Vec<&Row> = report.rows().iter().filter(|row| comparable(row)).collect();
    let runtimes = report.runtimes();
    let row_height = BAR * runtimes.len() as f64 + 10.0;
    let top = 70.0;
    let height = top + row_height * rows.len() as f64 + 20.0;
    let width = LEFT + FULL + 180.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(
        &mut svg,
        10.0,
        20.0,
        "start",
        "Median, as a share of the first runtime's; shorter is better",
    );
    text(&mut svg, 10.0, 36.0, "start", machine);
    for (index, name) in runtimes.iter().enumerate() {
        let x = 10.0 + index as f64 * 160.0;
        rectangle(&mut svg, x, 46.0, 10.0, index);
        text(&mut svg, x + 16.0, 56.0, "start", name);
    }
    for (index, row) in rows.iter().enumerate() {
        draw(&mut svg, row, top + row_height * index as f64);
    }
    let one = LEFT + FULL / WIDEST;
    let _ = writeln!(
        svg,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"{top}\" y2=\"{height}\" stroke=\"#888\" \
         stroke-dasharray=\"2 3\"/>\n</svg>"
    );
    svg
}

/// Whether it has a ratio to draw.
fn comparable(row: &Row) -> bool {
    let first = row.values.first().and_then(|values| Summary::of(values));
    let others = row.values.iter().skip(1).any(|values| !values.is_empty());
    others && first.is_some_and(|first| first.median > 0.0)
}

fn draw(svg: &mut String, row: &Row, top: f64) {
    let label = format!("{}: {}", row.part, row.what);
    text(svg, LEFT - 8.0, top + BAR - 2.0, "end", &label);
    let medians: Vec<Option<f64>> =
        row.values.iter().map(|values| Summary::of(values).map(|summary| summary.median)).collect();
    let first = medians.first().copied().flatten().unwrap_or(1.0);
    for (index, median) in medians.iter().enumerate() {
        let Some(median) = median else { continue };
        let ratio = median / first;
        let length = FULL * ratio.min(WIDEST) / WIDEST;
        let y = top + BAR * index as f64;
        rectangle(svg, LEFT, y, length.max(0.5), index);
        let figure = format!("{median:.3} {} ({ratio:.2})", row.unit.symbol());
        text(svg, LEFT + length + 5.0, y + BAR - 4.0, "start", &figure);
    }
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, colour: usize) {
    let (height, colour) = (BAR - 3.0, COLOURS[colour % COLOURS.len()]);
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}
