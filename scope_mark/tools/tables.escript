#!/usr/bin/env escript
%% SPDX-License-Identifier: Apache-2.0
%% Makes src/scope_mark_tables.erl of what VMs say about themselves. In each release to be supported run
%%     escript tools/tables.escript dump > FILE
%% and then, with the newest release's file first,
%%     escript tools/tables.escript make FILE... > src/scope_mark_tables.erl
-mode(compile).

main(["dump"]) ->
    io:format("~w.~n~w.~n~w.~n~w.~n", [
        list_to_integer(erlang:system_info(otp_release)),
        opcodes(1),
        lists:sort(erlang:system_info(snifs)),
        lists:sort(erlang:pre_loaded())
    ]);
main(["make" | Files]) ->
    [{Newest, Opcodes, _, _} | _] = Dumps = [dump(F) || F <- Files],
    [true = lists:prefix(O, Opcodes) || {_, O, _, _} <- Dumps],
    Bifs = ordsets:intersection([B || {_, _, B, _} <- Dumps]),
    Preloaded = lists:usort(lists:append([P || {_, _, _, P} <- Dumps])),
    io:format(
        "%% SPDX-License-Identifier: Apache-2.0~n"
        "%% Made by tools/tables.escript of OTP ~s. Do not edit.~n"
        "-module(scope_mark_tables).~n-export([otp/0, arities/0, bifs/1, preloaded/0]).~n~n"
        "%% The newest release whose opcodes are known.~n-spec otp() -> pos_integer().~notp() -> ~w.~n~n"
        "%% Operands of each opcode from 1 on (lib/compiler/src/genop.tab).~n"
        "-spec arities() -> tuple().~narities() ->~n    ~s.~n~n"
        "%% BIFs that every one of these releases has.~n"
        "-spec bifs(binary()) -> [{binary(), arity()}].~n~s"
        "bifs(_) -> [].~n~n"
        "%% Modules that are in the emulator itself in one of these releases.~n"
        "-spec preloaded() -> [binary()].~npreloaded() ->~n    [~s].~n",
        [
            lists:join(", ", [integer_to_list(R) || {R, _, _, _} <- lists:sort(Dumps)]),
            Newest,
            filled(io_lib:format("~w", [list_to_tuple([A || {_, _, A} <- Opcodes])])),
            [bifs(M, Bifs) || M <- lists:usort([M || {M, _, _} <- Bifs])],
            filled(lists:join(",", [io_lib:format("<<\"~s\">>", [P]) || P <- Preloaded]))
        ]).

dump(File) ->
    {ok, [Release, Opcodes, Bifs, Preloaded]} = file:consult(File),
    {Release, Opcodes, Bifs, Preloaded}.

opcodes(N) ->
    try beam_opcodes:opname(N) of
        {Name, Arity} -> [{N, Name, Arity} | opcodes(N + 1)]
    catch
        error:_ -> []
    end.

bifs(Module, Bifs) ->
    Pairs = [io_lib:format("{<<\"~s\">>,~w}", [F, A]) || {M, F, A} <- Bifs, M =:= Module],
    io_lib:format("bifs(<<\"~s\">>) ->~n    [~s];~n", [Module, filled(lists:join(",", Pairs))]).

%% Lines of at most 110 characters, broken behind commas.
filled(Text) ->
    lists:join("\n     ", lines(string:split(lists:flatten(Text), ",", all), "")).

lines([], Line) -> [Line];
lines([Word], Line) -> [Line ++ Word];
lines([Word | Words], Line) when length(Line) + length(Word) > 105 -> [Line | lines(Words, Word ++ ",")];
lines([Word | Words], Line) -> lines(Words, Line ++ Word ++ ",").
