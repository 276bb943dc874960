//! A line plot as SVG text. Colors are attributes, so that the file is self-contained; classes let
//! the page restyle it.

use std::fmt::Write;

use super::axis::Axis;
use super::series::{Point, range, thin};

/// Size of a plot in SVG units; text is 13 to 16 units high, so that it is legible on a phone too.
pub(super) const WIDTH: f64 = 480.0;
/// See [`WIDTH`].
pub(super) const HEIGHT: f64 = 300.0;

const FONT: &str = "DejaVu Sans, Verdana, sans-serif";
/// Number of buckets to which a curve is thinned, one or two points each.
const MAX_BUCKETS: usize = 200;
/// Font sizes in SVG units; a phone shows a plot at 0.7 of its size.
const TITLE: f64 = 16.0;
const SMALL: f64 = 13.0;
/// Upper estimate of the mean width of a character in units of the font size.
const CHARACTER: f64 = 0.62;

/// Colors that people with any common color blindness can distinguish (Okabe and Ito,
/// <https://jfly.uni-koeln.de/color/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Blue,
    Orange,
    Green,
    Sky,
    Amber,
}

impl Color {
    fn hex(self) -> &'static str {
        match self {
            Self::Blue => "#0072b2",
            Self::Orange => "#d55e00",
            Self::Green => "#009e73",
            Self::Sky => "#56b4e9",
            Self::Amber => "#e69f00",
        }
    }

    /// Returns the class for the page's dark colors.
    fn class(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Orange => "orange",
            Self::Green => "green",
            Self::Sky => "sky",
            Self::Amber => "amber",
        }
    }
}

/// The style in which a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Thin and light, without a legend entry: single steps behind their mean.
    Faint,
    /// A full line.
    Strong,
    /// A dashed line with a dot at each point: evaluations.
    Dots,
    /// A full line with a lightly filled area below: histograms.
    Area,
}

/// One curve.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// Name in the legend.
    pub(super) label: &'static str,
    /// Its color.
    pub(super) color: Color,
    /// Its style.
    pub(super) style: Style,
    /// Points ascending in x; NaN values are gaps.
    pub(super) points: Vec<Point>,
}

/// A plot of curves over one x axis.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    /// Heading.
    pub(super) title: &'static str,
    /// Label of the x axis.
    pub(super) x_label: &'static str,
    /// The range of y; that of the data if `None`.
    pub(super) y_range: Option<(f64, f64)>,
    /// The height and the legend entry of a dashed horizontal line.
    pub(super) level: Option<(f64, &'static str)>,
    /// The curves, back to front.
    pub(super) curves: Vec<Curve>,
}

/// The drawing area in SVG units, with its axes.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Axis,
    y: Axis,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.left + self.x.position(value) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - self.y.position(value) * (self.bottom - self.top)
    }
}

impl Plot {
    /// Returns whether there is anything to draw.
    pub(super) fn has_data(&self) -> bool {
        self.curves.iter().any(|c| range(&c.points).is_some())
    }

    /// Returns the plot as an SVG document.
    pub(super) fn draw(&self) -> String {
        let title = self.title;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"{title}\" \
             font-family=\"{FONT}\">\n\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, (14.0, 24.0), TITLE, "start", title);
        let legend_end = self.legend(&mut svg);
        let frame = self.frame(legend_end + 12.0);
        self.axes(&mut svg, &frame);
        for curve in &self.curves {
            draw_curve(&mut svg, &frame, curve);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Returns the drawing area below `top`, with axes that fit the data.
    fn frame(&self, top: f64) -> Frame {
        let all = || self.curves.iter().flat_map(|c| &c.points);
        let steps: Vec<Point> = all().map(|p| (0.0, p.0)).collect();
        let (first, last) = range(&steps).unwrap_or((0.0, 1.0));
        let mut values: Vec<Point> = all().copied().collect();
        values.extend(self.level.map(|(height, _)| (0.0, height)));
        let (low, high) = range(&values).unwrap_or((0.0, 1.0));
        let y = match self.y_range {
            Some((low, high)) => Axis::new(low, high, 6, false),
            None => Axis::with_margin(low, high, 7),
        };
        let longest = y.labels.iter().map(|l| l.chars().count()).max();
        let left = 22.0 + longest.unwrap_or(1) as f64 * SMALL * CHARACTER;
        Frame {
            left,
            right: WIDTH - 22.0,
            top,
            bottom: HEIGHT - 46.0,
            x: Axis::new(first, last, 6, true),
            y,
        }
    }

    /// Draws the legend below the title in as many rows as it needs; returns its lower end.
    fn legend(&self, svg: &mut String) -> f64 {
        let (mut x, mut y) = (14.0, 45.0);
        let named = self.curves.iter().filter(|c| c.style != Style::Faint);
        let keys = named.map(|c| (c.label, Some(c)));
        let keys: Vec<_> = keys.chain(self.level.map(|(_, label)| (label, None))).collect();
        if keys.len() < 2 {
            return 30.0; // a single curve is named by the title
        }
        for (label, curve) in keys {
            let width = 28.0 + label.chars().count() as f64 * SMALL * CHARACTER + 14.0;
            if x + width > WIDTH && x > 14.0 {
                (x, y) = (14.0, y + 19.0);
            }
            let middle = y - 4.0;
            let ends = [(x, middle), (x + 22.0, middle)];
            match curve {
                Some(curve) => {
                    stroke(svg, &path_data(&ends), curve);
                    if curve.style == Style::Dots {
                        dot(svg, (x + 11.0, middle), curve.color);
                    }
                }
                None => level_line(svg, ends),
            }
            text(svg, (x + 28.0, y), SMALL, "start", label);
            x += width;
        }
        y
    }

    /// Draws the axes, the grid and the level line.
    fn axes(&self, svg: &mut String, frame: &Frame) {
        let Frame { left, right, top, bottom, .. } = *frame;
        for (tick, label) in frame.y.ticks.iter().zip(&frame.y.labels) {
            let y = frame.y(*tick);
            rule(svg, "grid", "#e4e4e4", [(left, y), (right, y)]);
            text(svg, (left - 7.0, y + 4.5), SMALL, "end", label);
        }
        for (tick, label) in frame.x.ticks.iter().zip(&frame.x.labels) {
            let x = frame.x(*tick);
            rule(svg, "axis", "#808080", [(x, bottom), (x, bottom + 4.0)]);
            text(svg, (x, bottom + 19.0), SMALL, "middle", label);
        }
        rule(svg, "axis", "#808080", [(left, bottom), (right, bottom)]);
        rule(svg, "axis", "#808080", [(left, bottom), (left, top)]);
        let middle = (left + right) / 2.0;
        text(svg, (middle, HEIGHT - 9.0), SMALL, "middle", self.x_label);
        if let Some((height, _)) = self.level {
            let y = frame.y(height);
            level_line(svg, [(left, y), (right, y)]);
        }
    }
}

/// Draws a curve, with gaps at values that are not finite.
fn draw_curve(svg: &mut String, frame: &Frame, curve: &Curve) {
    let points = thin(&curve.points, MAX_BUCKETS);
    for run in points.split(|p| !p.1.is_finite()).filter(|run| !run.is_empty()) {
        let run: Vec<Point> = run.iter().map(|p| (frame.x(p.0), frame.y(p.1))).collect();
        let path = path_data(&run);
        if curve.style == Style::Area {
            let (class, color) = (curve.color.class(), curve.color.hex());
            let _ = writeln!(
                svg,
                "<path class=\"fill-{class}\" d=\"{path}Z\" fill=\"{color}\" fill-opacity=\"0.13\"/>"
            );
        }
        stroke(svg, &path, curve);
        // A line through one point is invisible.
        if curve.style == Style::Dots || run.len() == 1 {
            run.iter().for_each(|p| dot(svg, *p, curve.color));
        }
    }
}

/// Returns the path through `points`, rounded to a tenth of a unit.
fn path_data(points: &[Point]) -> String {
    let mut path = String::new();
    for (i, (x, y)) in points.iter().enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    path
}

// Writing to a String cannot fail, so the results of `write!` are dropped below.

fn stroke(svg: &mut String, path: &str, curve: &Curve) {
    let (class, color) = (curve.color.class(), curve.color.hex());
    let look = match curve.style {
        Style::Faint => "stroke-width=\"1\" stroke-opacity=\"0.35\"",
        Style::Strong => "stroke-width=\"2.2\"",
        Style::Dots => "stroke-width=\"1.5\" stroke-dasharray=\"4 3\"",
        Style::Area => "stroke-width=\"1.8\"",
    };
    let _ = writeln!(
        svg,
        "<path class=\"{class}\" d=\"{path}\" fill=\"none\" stroke=\"{color}\" {look} stroke-linejoin=\"round\"/>"
    );
}

fn dot(svg: &mut String, (x, y): Point, color: Color) {
    let (class, color) = (color.class(), color.hex());
    let _ = writeln!(
        svg,
        "<circle class=\"fill-{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"
    );
}

fn rule(svg: &mut String, class: &str, color: &str, [from, to]: [Point; 2]) {
    let path = path_data(&[from, to]);
    let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\" stroke=\"{color}\"/>");
}

fn level_line(svg: &mut String, ends: [Point; 2]) {
    let path = path_data(&ends);
    let _ = writeln!(
        svg,
        "<path class=\"level\" d=\"{path}\" stroke=\"#555555\" stroke-width=\"1.2\" stroke-dasharray=\"2 3\"/>"
    );
}

fn text(svg: &mut String, (x, y): Point, size: f64, anchor: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"#222222\">{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(curves: Vec<Curve>) -> Plot {
        Plot { title: "Loss", x_label: "step", y_range: None, level: Some((0.5, "half")), curves }
    }

    fn curve(style: Style, points: Vec<Point>) -> Curve {
        Curve { label: "training", color: Color::Blue, style, points }
    }

    /// Returns the coordinates of every path that has `class`.
    fn paths(svg: &str, class: &str) -> Vec<Vec<(f64, f64)>> {
        let has_class = |line: &&str| line.starts_with(&format!("<path class=\"{class}\""));
        let points = |line: &str| {
            let path = line.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
            let pairs = path.split(['M', 'L', 'Z']).filter(|pair| !pair.is_empty());
            let number = |text: Option<&str>| text.unwrap().parse().unwrap();
            pairs
                .map(|pair| pair.split(' '))
                .map(|mut pair| (number(pair.next()), number(pair.next())))
                .collect()
        };
        svg.lines().filter(has_class).map(points).collect()
    }

    #[test]
    fn a_curve_is_drawn_at_its_values() {
        let points = vec![(1.0, 0.0), (2.0, 1.0), (5.0, 0.25)];
        let svg = plot(vec![curve(Style::Strong, points)]).draw();
        let drawn = paths(&svg, "blue").pop().unwrap(); // the first one belongs to the legend
        let level = paths(&svg, "level").remove(1);
        let height = |value: f64| drawn[0].1 + value * (drawn[1].1 - drawn[0].1);
        assert!(drawn[1].1 < drawn[0].1, "larger values are higher up");
        assert!((drawn[2].1 - height(0.25)).abs() < 0.11);
        assert!((level[0].1 - height(0.5)).abs() < 0.11);
        let width = drawn[2].0 - drawn[0].0;
        assert!((drawn[1].0 - drawn[0].0 - width / 4.0).abs() < 0.11);
        assert_eq!((level[0].0, level[1].0), (drawn[0].0, drawn[2].0));
    }

    #[test]
    fn gaps_and_single_points_show() {
        let nan = f64::NAN;
        let points = vec![(1.0, 0.1), (2.0, 0.2), (3.0, nan), (4.0, 0.4), (5.0, nan)];
        let svg = plot(vec![curve(Style::Strong, points)]).draw();
        let drawn = paths(&svg, "blue");
        let counts: Vec<_> = drawn[1..].iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 1]);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(!plot(vec![curve(Style::Strong, vec![(1.0, nan)])]).has_data());
    }

    #[test]
    fn everything_stays_inside_and_long_curves_are_thinned() {
        let wild = |i: f64| (i * 0.7).sin() * 10f64.powf((i * 0.1).cos() * 6.0);
        let points: Vec<_> = (0..5000).map(f64::from).map(|i| (i, wild(i))).collect();
        let names = ["one", "a much longer name", "another long name", "and one more name"];
        let curves = names.map(|label| Curve { label, ..curve(Style::Dots, points.clone()) });
        let svg = plot(curves.to_vec()).draw();
        for path in paths(&svg, "blue") {
            assert!(path.len() <= 2 * MAX_BUCKETS);
            let inside = |p: &Point| (0.0..=WIDTH).contains(&p.0) && (0.0..=HEIGHT).contains(&p.1);
            assert!(path.iter().all(inside));
        }
    }
}
