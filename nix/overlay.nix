# agentmachine's packages, for any nixpkgs.
final: _prev: {
  agentmachine = final.callPackage ./package.nix { };
  agentmachine-init = final.callPackage ./init.nix { };
}
