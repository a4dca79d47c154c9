{
  description = "Machines for AI coding agents, on systemd-nspawn and systemd-machined";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      # opencode's pinned build is for this one alone.
      systems = [ "x86_64-linux" ];
      forEach = function: nixpkgs.lib.genAttrs systems (system: function nixpkgs.legacyPackages.${system});
      packagesFor = pkgs: import ./nix { inherit pkgs; };
    in
    {
      packages = forEach (
        pkgs:
        let
          packages = packagesFor pkgs;
        in
        {
          default = packages.agentmachine;
          inherit (packages) agentmachine agentmachine-init opencode;
          rootfs = packages.tree;
          rootfs-squashfs = packages.squashfs;
          rootfs-tarball = packages.tarball;
        }
      );

      overlays.default = import ./nix/overlay.nix;

      nixosModules.default = ./nix/module.nix;

      checks = forEach (pkgs: {
        inherit (self.packages.${pkgs.stdenv.hostPlatform.system}) agentmachine rootfs;
        nixos = pkgs.testers.runNixOSTest (import ./nix/nixos-test.nix { module = self.nixosModules.default; });
      });

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ self.packages.${pkgs.stdenv.hostPlatform.system}.agentmachine ];
          packages = [
            pkgs.clang-tools
            pkgs.gtest
            pkgs.shellcheck
          ];
        };
      });

      formatter = forEach (pkgs: pkgs.nixfmt-tree or pkgs.nixfmt-rfc-style);
    };
}
