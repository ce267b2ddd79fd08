%% SPDX-License-Identifier: Apache-2.0
%% The start of the escript. A VM that is too new for the compiled modules in it compiles them once more, from the
%% abstract code that they carry. This module must load everywhere: no binary syntax in it.
-module(scope_mark_escript).
-export([main/1]).

-spec main([string()]) -> no_return().
main(Args) ->
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, none),
    {ok, Sections} = escript:extract(escript:script_name(), []),
    {ok, Files} = zip:unzip(proplists:get_value(archive, Sections), [memory]),
    _ = [load(Name, Beam) || {Name, Beam} <- Files, filename:extension(Name) =:= ".beam", not is_this(Name)],
    ok = logger:set_primary_config(level, Level),
    scope_mark_cli:main(Args).

is_this(Name) -> filename:basename(Name, ".beam") =:= atom_to_list(?MODULE).

load(Name, Beam) ->
    Module = list_to_atom(filename:basename(Name, ".beam")),
    case code:load_binary(Module, Name, Beam) of
        {module, Module} -> ok;
        {error, _} ->
            {ok, {Module, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(Beam, [abstract_code]),
            {ok, Module, New} = compile:forms(Forms, []),
            {module, Module} = code:load_binary(Module, Name, New)
    end.
