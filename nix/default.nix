# agentmachine from nixpkgs, for those without flakes: `nix-build nix -A agentmachine`, -A tarball and so on;
# `imports = [ (import ./agentmachine/nix { }).module ];`. ../images/build takes the image from here.
{
  pkgs ? import <nixpkgs> { },
  npmRegistry ? null, # base URL of an npm registry, for the opencode that is pinned; null: nixpkgs' own
  extraPackages ? [ ],
  chosen ? [ ], # names of packages for cards that ask for them
}:
let
  image = import ./image.nix {
    inherit
      pkgs
      npmRegistry
      extraPackages
      chosen
      ;
  };
in
rec {
  agentmachine-init = pkgs.callPackage ./init.nix { };
  agentmachine = pkgs.callPackage ./package.nix { inherit agentmachine-init; };
  inherit (image)
    opencode
    closure
    manifest
    squashfs
    tarball
    tree
    ;
  module = ./module.nix;
}
