//! Graph passes: canonical, equalise, fusion, precision, layout.
