//! PNG pictures of the plots, drawn with an embedded font so that every machine makes the same.

use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::svg::{HEIGHT, WIDTH};
use crate::error::{Error, Result};

/// Pixels per SVG unit.
const SCALE: f32 = 2.5;

/// See `assets/fonts/README.md`.
static FONT: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans-subset.ttf");

/// Draws SVG as PNG.
pub(super) struct PngWriter {
    options: Options<'static>,
}

impl PngWriter {
    /// Loads the font.
    pub(super) fn new() -> Self {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(FONT.to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        let options = Options { fontdb: Arc::new(fonts), ..Options::default() };
        Self { options }
    }

    /// The PNG file of a plot.
    ///
    /// # Errors
    /// `svg` is not SVG, or there is not the memory for the picture.
    pub(super) fn encode(&self, svg: &str) -> Result<Vec<u8>> {
        let fail = |problem: String| {
            Error::run(format!("cannot draw a plot: {problem}"), "report this as a bug")
        };
        let tree = Tree::from_str(svg, &self.options).map_err(|e| fail(e.to_string()))?;
        let size = ((WIDTH as f32 * SCALE) as u32, (HEIGHT as f32 * SCALE) as u32);
        let mut pixels =
            Pixmap::new(size.0, size.1).ok_or_else(|| fail("no memory".to_string()))?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| fail(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dark_pixels(label: &str) -> usize {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
             <text x=\"20\" y=\"90\" font-size=\"30\" font-family=\"DejaVu Sans, Verdana, sans-serif\">{label}</text></svg>"
        );
        let png = PngWriter::new().encode(&svg).unwrap();
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
        let pixels = Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (1200, 750));
        pixels.pixels().iter().filter(|p| p.red() < 128).count()
    }

    #[test]
    fn every_sign_the_plots_use_is_in_the_font() {
        assert_eq!(dark_pixels(" "), 0);
        for sign in ('!'..='~').filter(|c| !matches!(c, '&' | '<')).chain(['\u{2212}', '\u{2013}'])
        {
            assert!(dark_pixels(&sign.to_string()) > 10, "{sign:?}");
        }
    }
}
