//! Pictures of reports, in SVG: what arrived and how long round trips took over time, for one pair; a
//! matrix of who reaches whom how fast, for all.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    report::{Report, ReportList},
    show::rate,
};
use crate::measure::result::Sum;

/// Width of a picture of one pair (pixels).
const WIDTH: u32 = 900;
/// Height of each of its two charts (pixels).
const CHART_HEIGHT: u32 = 300;
/// Smallest width of a matrix (pixels): its title fits.
const WIDTH_MIN: u32 = 480;
/// Side of one cell of the matrix (pixels).
const CELL: u32 = 96;
/// Room for the names of pods beside and above the matrix (pixels).
const NAMES: u32 = 150;
/// Most points of round trips in a picture: more are not told apart.
const POINTS_MAX: usize = 2000;

const FORWARD: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const BACK: RGBColor = RGBColor(0xc0, 0x5a, 0x1c);
const TRIPS: RGBColor = RGBColor(0x2f, 0x80, 0x4a);
const TEXT: RGBColor = RGBColor(0x22, 0x22, 0x22);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Points, their colour and what they are.
type Line<'a> = (&'a [(f64, f64)], RGBColor, &'a str);

/// A file that will be one. Nothing is seen of it until it is written as a whole.
#[derive(Debug)]
pub(super) struct Picture {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Picture {
    /// Makes sure that `path` can be written before anything is measured.
    pub(super) fn at(path: &Path) -> anyhow::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".fabric-bench")
            .permissions(std::fs::Permissions::from_mode(0o644))
            .tempfile_in(folder)
            .with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes it.
    pub(super) fn write(mut self, svg: &str) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        self.file.write_all(svg.as_bytes()).with_context(failed)?;
        self.file
            .persist(&self.path)
            .map(drop)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// One pair.
pub(super) fn pair(report: &Report) -> anyhow::Result<String> {
    draw((WIDTH, 2 * CHART_HEIGHT), |area| {
        let (upper, lower) = area.split_vertically(CHART_HEIGHT);
        throughput(report, &upper)?;
        round_trips(report, &lower)
    })
}

/// All pairs.
pub(super) fn all(list: &ReportList) -> anyhow::Result<String> {
    let mut names: Vec<&str> = Vec::new();
    for report in &list.items {
        for name in [report.from.label(), report.to.label()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let side = CELL * u32::try_from(names.len()).unwrap_or_default();
    draw(
        (WIDTH_MIN.max(NAMES + side + 20), NAMES + side + 20),
        |area| matrix(list, &names, area),
    )
}

fn draw(
    size: (u32, u32),
    content: impl FnOnce(&Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        content(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The library's errors borrow what it draws on.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

fn throughput(report: &Report, area: &Area<'_>) -> anyhow::Result<()> {
    let curve = |of: &dyn Fn(usize) -> Option<Sum>| -> Vec<(f64, f64)> {
        let sums = (0..report.tcp.intervals.len()).filter_map(of);
        sums.map(|sum| ((sum.start + sum.end) / 2.0, sum.bits_per_second / 1e9))
            .collect()
    };
    let intervals = &report.tcp.intervals;
    let forward = curve(&|at| Some(intervals.get(at)?.sum.clone()));
    let back = curve(&|at| intervals.get(at)?.sum_bidir_reverse.clone());
    let caption = format!(
        "{} to {}: {} over TCP",
        report.from.label(),
        report.to.label(),
        report
            .tcp
            .received_bits_per_second()
            .map_or_else(|| "nothing".to_owned(), rate)
    );
    let series = [(&forward[..], FORWARD, "there"), (&back[..], BACK, "back")];
    chart(area, &caption, "Gbit/s", &series)
}

fn round_trips(report: &Report, area: &Area<'_>) -> anyhow::Result<()> {
    let thin = |times: &[(f64, f64)]| -> Vec<(f64, f64)> {
        times
            .iter()
            .copied()
            .step_by(times.len().div_ceil(POINTS_MAX).max(1))
            .collect()
    };
    let (idle, loaded) = (thin(&report.rtt.idle.times), thin(&report.rtt.loaded.times));
    let series = [
        (&loaded[..], BACK, "beside TCP"),
        (&idle[..], TRIPS, "idle"),
    ];
    chart(area, "Round-trip time", "ms", &series)
}

/// Lines over seconds.
fn chart(area: &Area<'_>, caption: &str, unit: &str, series: &[Line<'_>]) -> anyhow::Result<()> {
    let points = || series.iter().flat_map(|(points, _, _)| points.iter());
    let end = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.25 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18).into_font().color(&TEXT))
        .margin(14)
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc(unit)
        .light_line_style(WHITE.mix(0.0))
        .draw()
        .map_err(failed)?;
    for (points, color, name) in series.iter().filter(|(points, _, _)| !points.is_empty()) {
        let color = *color;
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))
            .map_err(failed)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(failed)
}

fn matrix(list: &ReportList, names: &[&str], area: &Area<'_>) -> anyhow::Result<()> {
    let rates = list
        .items
        .iter()
        .filter_map(|it| it.tcp.received_bits_per_second());
    let top = rates.fold(0.0, f64::max);
    let place = |name: &str| {
        names
            .iter()
            .position(|found| *found == name)
            .unwrap_or_default()
    };
    let at = |number: usize| (NAMES as usize + number * CELL as usize) as i32;
    let half = CELL as i32 / 2;
    let style = |size: u32, color: RGBColor, horizontal: HPos| {
        ("sans-serif", size)
            .into_font()
            .color(&color)
            .pos(Pos::new(horizontal, VPos::Center))
    };
    let title = "Gbit/s over TCP, from (left) to (top); round trip idle and loaded";
    area.draw_text(title, &style(14, TEXT, HPos::Left), (14, 20))
        .map_err(failed)?;
    for (number, name) in names.iter().enumerate() {
        let short = name.rsplit('/').next().unwrap_or_default();
        let row = (NAMES as i32 - 8, at(number) + half);
        area.draw_text(short, &style(13, TEXT, HPos::Right), row)
            .map_err(failed)?;
        let column = (at(number) + half, NAMES as i32 - 14);
        area.draw_text(short, &style(13, TEXT, HPos::Center), column)
            .map_err(failed)?;
    }
    for report in &list.items {
        let (x, y) = (at(place(report.to.label())), at(place(report.from.label())));
        let bits = report.tcp.received_bits_per_second();
        let share = bits.map_or(0.0, |bits| if top > 0.0 { bits / top } else { 0.0 });
        let corners = [(x + 2, y + 2), (x + CELL as i32 - 2, y + CELL as i32 - 2)];
        let fill = FORWARD.mix(0.1 + 0.75 * share).filled();
        area.draw(&Rectangle::new(corners, fill)).map_err(failed)?;
        let ink = if share > 0.5 { WHITE } else { TEXT };
        let word = bits.map_or_else(|| "failed".to_owned(), |bits| format!("{:.2}", bits / 1e9));
        area.draw_text(
            &word,
            &style(18, ink, HPos::Center),
            (x + half, y + half - 12),
        )
        .map_err(failed)?;
        let trips = [&report.rtt.idle, &report.rtt.loaded].map(|trips| {
            trips
                .summary
                .as_ref()
                .map_or_else(|| "?".to_owned(), |it| format!("{:.2}", it.p50_ms))
        });
        let trips = format!("{} ms", trips.join(" / "));
        area.draw_text(
            &trips,
            &style(11, ink, HPos::Center),
            (x + half, y + half + 16),
        )
        .map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::bench::report::tests::sample;

    /// The numbers in the texts of a picture.
    fn texts(svg: &str) -> Vec<&str> {
        let pieces = svg.split("</text>");
        pieces
            .filter_map(|piece| Some(piece.rsplit_once('>')?.1.trim()))
            .collect()
    }

    /// A picture of one pair has both pods, the rate, and a line for each thing measured.
    #[test]
    fn one_pair_is_drawn() {
        let svg = pair(&sample()).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        let texts = texts(&svg);
        for text in [
            "default/web to default/db: 6.80 Gbit/s over TCP",
            "Gbit/s",
            "Round-trip time",
            "there",
            "idle",
            "beside TCP",
        ] {
            assert!(texts.contains(&text), "{text:?} is not in {texts:?}");
        }
        assert!(!texts.contains(&"back"));
    }

    /// A picture of a run that measured nothing is still a picture.
    #[test]
    fn nothing_is_drawn_as_nothing() {
        let mut nothing = sample();
        nothing.tcp = crate::measure::Measurement::failed(&anyhow!("no"));
        nothing.rtt = super::super::report::Rtt::default();
        assert!(pair(&nothing).unwrap().contains("nothing over TCP"));
        assert!(
            all(&ReportList {
                items: vec![nothing]
            })
            .unwrap()
            .contains("failed")
        );
        assert!(all(&ReportList::default()).unwrap().ends_with("</svg>\n"));
    }

    /// Names of pods are text, whatever they contain.
    #[test]
    fn names_are_escaped() {
        let mut odd = sample();
        let pod = crate::cli::bench::pods::PodAt {
            node: "a".to_owned(),
            pod: fabric_proto::admin::Pod {
                name: "<script>&".to_owned(),
                ..Default::default()
            },
        };
        odd.from = super::super::report::Member::of(&pod, None);
        for svg in [
            pair(&odd).unwrap(),
            all(&ReportList { items: vec![odd] }).unwrap(),
        ] {
            assert!(
                !svg.contains("<script") && svg.contains("&lt;script&gt;&amp;"),
                "{svg}"
            );
        }
    }

    /// A picture replaces its file as a whole; a folder that is not there is noticed before.
    #[test]
    fn files_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        std::fs::write(&path, "old").unwrap();
        drop(Picture::at(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        Picture::at(&path).unwrap().write("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(Picture::at(&dir.path().join("none/x.svg")).is_err());
    }
}
