{
  description = "Stands in for nixpkgs, for `nix flake check` without it";
  outputs = _: rec {
    lib = import ./lib.nix;
    legacyPackages.x86_64-linux = import ./pkgs.nix { inherit lib; };
  };
}
