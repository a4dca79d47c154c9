# The options of services.agentmachine that lack a description or an example, or have an example that they refuse, one a
# line. With nixpkgs' lib, all that its manual would say of them is evaluated, too.
{ lib }:
let
  pkgs = import ./pkgs.nix { inherit lib; };
  inherit
    ((lib.evalModules {
      modules = [
        ./nixos.nix
        ../../nix/module.nix
      ];
      specialArgs = { inherit pkgs; };
    }).options.services
    )
    agentmachine
    ;
  walk =
    path: options:
    lib.concatLists (
      lib.mapAttrsToList (
        name: option:
        let
          here = "${path}.${name}";
        in
        if name == "_module" then
          [ ]
        else if option._type or "" != "option" then
          walk here option
        else
          lib.optional (!(option ? description && (option ? example || option.type.name or "" == "package"))) here
          # An example that is Nix is text here.
          ++ lib.optional (
            option ? example && option.example._type or "" == "" && !option.type.check option.example
          ) "${here}: its example is of another type"
          ++ walk here ((option.type.getSubOptions or (_: { })) [ ])
      ) options
    );
  manual = builtins.deepSeq (lib.optionAttrSetToDocList { services = { inherit agentmachine; }; }) "";
in
lib.concatMapStrings (path: "${path}\n") (walk "services.agentmachine" agentmachine)
+ (if lib ? optionAttrSetToDocList then manual else "")
