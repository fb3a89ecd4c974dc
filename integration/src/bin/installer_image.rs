//! Writes the image that puts Palisade onto the nodes of a cluster, as a tar
//! archive for `ctr image import`. `ci/package --image` calls it.

use integration::image;

fn main() {
    let file = std::env::args_os().nth(1).expect("usage: installer_image FILE");
    std::fs::write(file, image::installer()).expect("write the image");
}
