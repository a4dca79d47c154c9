# What the program is built from: a change of tests, documents or this folder builds nothing again.
{ lib }:
lib.fileset.toSource {
  root = ../.;
  fileset = lib.fileset.unions [
    ../meson.build
    ../meson.options
    ../completions
    ../images
    ../man
    ../src
    ../units
    ./default.nix
    ./image.nix
    ./permissions.js
    ./rootfs.nix
    ./without-scripts.nix
  ];
}
