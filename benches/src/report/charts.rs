//! Bar charts as SVG: one for each measure and figure, a bar for each system with its median, and a
//! line from the smallest to the largest sample. Never done here: writing files.

use anyhow::Context as _;
use plotters::{
    coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Part, Report};
use crate::{
    plan::{Figure, Measure, System, UNDERLAY_MTU_BYTES},
    statistics::Spread,
};

/// Width of a chart (pixels).
const WIDTH: u32 = 720;
/// Height of a bar with the space around it (pixels).
const BAR_HEIGHT: u32 = 30;
/// Height of title and scale together (pixels).
const FRAME_HEIGHT: u32 = 90;
/// Width of the names of the systems (pixels).
const NAMES_WIDTH: u32 = 130;
/// Height of the scale (pixels).
const SCALE_HEIGHT: u32 = 40;
/// Space around everything (pixels).
const MARGIN: u32 = 10;
/// Space above and below a bar (pixels).
const BAR_MARGIN: u32 = 6;
/// Between a bar or its line and its number (pixels).
const LABEL_GAP: i32 = 5;
/// Part of the scale that stays free behind the longest bar, for its number.
const FREE_SHARE: f64 = 0.15;
/// Steps between two powers of ten at which a scale may end.
const SCALE_STEPS: [f64; 8] = [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0];
/// About how many lines the scale has.
const SCALE_LINES: usize = 6;
/// This project.
const OWN_COLOUR: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
/// All others.
const OTHER_COLOUR: RGBColor = RGBColor(0xb0, 0xb7, 0xbf);
/// Lines from smallest to largest.
const SPREAD_COLOUR: RGBColor = RGBColor(0x33, 0x33, 0x33);

/// A picture, not yet a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// A name for its file, without a folder.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// The text of the file.
    pub svg: String,
}

/// All charts of a report: those of measures, then one of the memory of each part.
///
/// # Errors
///
/// A chart cannot be drawn.
pub fn draw(report: &Report) -> anyhow::Result<Vec<Chart>> {
    let plans = report.parts.iter().flat_map(plans);
    plans
        .map(|plan| {
            let svg = plan
                .svg()
                .with_context(|| format!("cannot draw {}", plan.title))?;
            Ok(Chart {
                file: plan.file,
                title: plan.title,
                svg,
            })
        })
        .collect()
}

/// What a chart shows.
struct Plan {
    file: String,
    title: String,
    figure: Figure,
    bars: Vec<(System, Spread)>,
}

fn plans(part: &Part) -> Vec<Plan> {
    let over = match part.underlay_mtu {
        UNDERLAY_MTU_BYTES => [String::new(), String::new()],
        mtu => [format!("-mtu-{mtu}"), format!(", MTU {mtu}")],
    };
    let [file_suffix, title_suffix] = over;
    let mut measures: Vec<Measure> = part.samples.cases().map(|case| case.measure).collect();
    measures.dedup();
    let of_measures = measures.into_iter().flat_map(|measure| {
        let figures = measure.figures().iter();
        figures.map(move |&figure| {
            let spread = move |system| part.samples.spread(measure, figure, system);
            let name = format!("{}-{}", measure.id(), figure.id());
            let title = format!("{}{}", measure.title(), figure.suffix());
            (name, title, figure, bars(spread))
        })
    });
    let peak = |system| Spread::of(&[part.samples.peak_rss_mib(system)?]);
    let memory = (
        "memory".to_owned(),
        "Resident memory under load, larger process".to_owned(),
        Figure::PeakRssMib,
        bars(peak),
    );
    of_measures
        .chain([memory])
        .filter(|(.., bars)| !bars.is_empty())
        .map(|(name, title, figure, bars)| Plan {
            file: format!("{name}{file_suffix}.svg"),
            title: format!("{title}{title_suffix} ({})", words(figure)),
            figure,
            bars,
        })
        .collect()
}

fn bars(spread: impl Fn(System) -> Option<Spread>) -> Vec<(System, Spread)> {
    System::ALL
        .into_iter()
        .filter_map(|system| Some((system, spread(system)?)))
        .collect()
}

fn words(figure: Figure) -> String {
    let better = if figure.less_is_better() {
        "less"
    } else {
        "more"
    };
    format!("{}, {better} is better", figure.unit())
}

impl Plan {
    fn svg(&self) -> anyhow::Result<String> {
        let count = u32::try_from(self.bars.len())?;
        let size = (WIDTH, FRAME_HEIGHT + count * BAR_HEIGHT);
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        self.draw(&area)?;
        area.present()?;
        drop(area);
        Ok(text)
    }

    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    ) -> anyhow::Result<()> {
        area.fill(&WHITE)?;
        let count = self.bars.len();
        let digits = self.figure.digits();
        let title = ("sans-serif", 18).into_font();
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, title)
            .margin(MARGIN)
            .x_label_area_size(SCALE_HEIGHT)
            .y_label_area_size(NAMES_WIDTH)
            .build_cartesian_2d(0.0..scale_end(&self.bars), (0..count - 1).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_labels(SCALE_LINES)
            .y_labels(count)
            .x_label_formatter(&|value| scale_label(*value))
            .y_label_formatter(&|segment| self.name(segment))
            .label_style(("sans-serif", 14))
            .draw()?;
        let number = ("sans-serif", 13).into_font().color(&BLACK);
        let number = number.pos(Pos::new(HPos::Left, VPos::Center));
        for (index, (system, spread)) in self.bars.iter().enumerate() {
            let row = row(index, count);
            let colour = if *system == System::Fabric {
                OWN_COLOUR
            } else {
                OTHER_COLOUR
            };
            let corners = [
                (0.0, SegmentValue::Exact(row)),
                (spread.median, SegmentValue::Exact(row + 1)),
            ];
            let mut bar = Rectangle::new(corners, colour.filled());
            bar.set_margin(BAR_MARGIN, BAR_MARGIN, 0, 0);
            let middle = SegmentValue::CenterOf(row);
            let line = [(spread.min, middle.clone()), (spread.max, middle.clone())];
            chart.draw_series([bar])?;
            chart.draw_series([PathElement::new(line, SPREAD_COLOUR.stroke_width(2))])?;
            let label = format!("{:.digits$}", spread.median);
            let behind = (spread.max.max(spread.median), middle);
            let label = Text::new(label, (LABEL_GAP, 0), number.clone());
            chart.draw_series([EmptyElement::at(behind) + label])?;
        }
        Ok(())
    }

    fn name(&self, segment: &SegmentValue<usize>) -> String {
        let (SegmentValue::Exact(value) | SegmentValue::CenterOf(value)) = segment else {
            return String::new();
        };
        let count = self.bars.len();
        let index = (*value < count).then(|| row(*value, count));
        let bar = index.and_then(|index| self.bars.get(index));
        bar.map_or_else(String::new, |(system, _)| system.title().to_owned())
    }
}

/// Rows are counted from below, bars from above, and the other way round.
fn row(index: usize, count: usize) -> usize {
    count - 1 - index
}

/// Where the scale ends: a round number, with space for a number behind the longest bar.
fn scale_end(bars: &[(System, Spread)]) -> f64 {
    let ends = bars.iter().map(|(_, spread)| spread.max);
    let longest = ends.fold(0.0, f64::max);
    if longest <= 0.0 {
        return 1.0;
    }
    let needed = longest * (1.0 + FREE_SHARE);
    let power = 10_f64.powf(needed.log10().floor());
    let steps = SCALE_STEPS.into_iter().chain([10.0]);
    steps
        .map(|step| step * power)
        .find(|end| *end >= needed)
        .unwrap_or(needed)
}

/// As many digits as tell two lines of the scale apart.
fn scale_label(value: f64) -> String {
    let rounded = (value * 1e4).round() / 1e4;
    format!("{rounded}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::report::example;

    fn bar(min: f64, median: f64, max: f64) -> (System, Spread) {
        (System::Fabric, Spread { median, min, max })
    }

    /// A scale ends at a round number beyond the largest sample, with space for the number behind it,
    /// and never so far out that less than half of it is used.
    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!(scale_end(&[bar(1.0, 2.0, 2.5), bar(0.1, 0.2, 0.3)]), 3.0);
        assert_eq!(scale_end(&[bar(6.0, 7.0, 7.7)]), 10.0);
        assert_eq!(scale_end(&[bar(900.0, 950.0, 1000.0)]), 1200.0);
        assert_eq!(scale_end(&[bar(0.0, 0.0, 0.0)]), 1.0);
        assert_eq!(scale_end(&[]), 1.0);
        for exponent in -30..40 {
            let longest = 1.3_f64.powi(exponent);
            let used = longest / scale_end(&[bar(0.0, longest, longest)]);
            assert!(
                (0.5..=1.0 / (1.0 + FREE_SHARE)).contains(&used),
                "{longest}"
            );
        }
    }

    /// Numbers of the scale are told without noise behind the point.
    #[test]
    fn scale_labels_are_short() {
        assert_eq!(scale_label(0.1 + 0.2), "0.3");
        assert_eq!(scale_label(12.0), "12");
    }

    /// The first bar is drawn on top, and its name stands beside it.
    #[test]
    fn names_stand_beside_their_bars() {
        let plans = plans(&example::incomplete().parts[0]);
        let plan = plans.first().unwrap();
        assert_eq!(plan.bars.len(), 2);
        assert_eq!(plan.name(&SegmentValue::CenterOf(1)), "fabric");
        assert_eq!(plan.name(&SegmentValue::CenterOf(0)), "wireguard-go");
        assert_eq!(plan.name(&SegmentValue::CenterOf(2)), "");
    }

    /// A chart has names, numbers and a bar of twice the length for twice the value.
    #[test]
    fn bars_are_as_long_as_their_values() {
        let charts = draw(&example::incomplete()).unwrap();
        let [chart] = charts.as_slice() else {
            panic!("{} charts", charts.len());
        };
        assert_eq!(chart.file, "tcp-across-rate.svg");
        for words in ["fabric", "wireguard-go", "3.00", "TCP across, 1 stream"] {
            assert!(chart.svg.contains(words), "{words} in {}", chart.svg);
        }
        let width = |fill: &str| -> f64 {
            let line = chart.svg.lines().find(|line| {
                line.starts_with("<rect") && line.to_lowercase().contains(&fill.to_lowercase())
            });
            let (_, rest) = line.unwrap().split_once("width=\"").unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let (own, other) = (width("#1f77b4"), width("#b0b7bf"));
        assert!((own / other - 2.0).abs() < 0.02, "{own} beside {other}");
    }
}
