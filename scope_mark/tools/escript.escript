#!/usr/bin/env escript
%% SPDX-License-Identifier: Apache-2.0
%% Compiles src/ and makes the command: escript tools/escript.escript OUT_FILE
-mode(compile).

main([Out]) ->
    Top = filename:dirname(filename:dirname(filename:absname(escript:script_name()))),
    Sources = lists:sort(filelib:wildcard(filename:join(Top, "src/*.erl"))),
    Beams = [compiled(S) || S <- Sources],
    {ok, App} = file:read_file(filename:join(Top, "src/scope_mark.app.src")),
    Files = [{"scope_mark/ebin/scope_mark.app", App} | Beams],
    ok = filelib:ensure_dir(Out),
    ok = escript:create(Out, [
        shebang,
        {comment, "SPDX-License-Identifier: Apache-2.0"},
        {emu_args, "-escript main scope_mark_escript +fnu"},
        {archive, Files, [{compress, all}]}
    ]),
    ok = file:change_mode(Out, 8#755).

compiled(Source) ->
    Options = [binary, debug_info, deterministic, warnings_as_errors, return_errors, report],
    case compile:file(Source, Options) of
        {ok, Module, Beam} -> {"scope_mark/ebin/" ++ atom_to_list(Module) ++ ".beam", Beam};
        _ -> halt(1)
    end.
