//! Writes the image that installs Palisade on the nodes of a cluster, as a tar
//! archive for `ctr image import`. `ci/package --image` runs it.

use integration::image;

fn main() {
    let file = std::env::args_os().nth(1).expect("usage: installer_image FILE");
    std::fs::write(file, image::installer()).expect("write the image");
}
