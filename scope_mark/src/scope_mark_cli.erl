%% SPDX-License-Identifier: Apache-2.0
%% The command scope-mark.
-module(scope_mark_cli).
-export([main/1, run/1]).

-define(USAGE,
    "usage: scope-mark PATH... --profile callbacks|all|none [--only PATTERN] [--except PATTERN]\n"
    "                  [--behaviours DIR] [--dry-run] [--format text|json]\n"
    "       scope-mark PATH... --unmark [--dry-run] [--format text|json]\n"
    "       scope-mark PATH... --info [--format text|json]\n"
    "\n"
    "Writes markers into the .beam files at PATH (files, or folders such as a release), so that\n"
    "each call and return can be seen from outside the node.\n"
    "\n"
    "  --profile P       callbacks: callbacks of behaviours; all: every function; none: as --unmark\n"
    "  --only PATTERN    mark only functions that match MODULE[:FUNCTION[/ARITY]]; * is anything; repeatable\n"
    "  --except PATTERN  leave functions that match alone; repeatable\n"
    "  --behaviours DIR  folder with .beam files of behaviours that are not below PATH; repeatable\n"
    "  --unmark          give every file its original contents back\n"
    "  --info            show what is marked\n"
    "  --dry-run         change nothing, say what would be done\n"
    "  --format F        text or json\n"
    "  --version         print the version\n"
    "\n"
    "Exit status: 0 all done, 1 a file failed (it is as it was; the others are done), 2 usage.\n").

-spec main([string()]) -> no_return().
main(Args) ->
    _ = io:setopts([{encoding, unicode}]),
    halt(run(Args)).

%% The exit status of the command.
-spec run([string()]) -> 0 | 1 | 2.
run(Args) ->
    try parse(Args, #{paths => [], only => [], except => [], behaviours => [], format => text, dry_run => false}) of
        help -> io:put_chars(?USAGE), 0;
        version -> io:put_chars(["scope-mark ", vsn(), "\n"]), 0;
        Parsed -> done(Parsed)
    catch
        throw:{usage, Text} -> complain([Text, "\nscope-mark --help shows the options"]), 2;
        throw:{bad_pattern, _} = Reason -> complain(scope_mark:format_error(Reason)), 2
    end.

parse([], #{paths := []}) -> throw({usage, "no file or folder was named"});
parse([], #{action := _} = Parsed) -> Parsed;
parse([], _) -> throw({usage, "say what to mark: --profile callbacks, all or none (or --unmark, --info)"});
parse(["--help" | _], _) -> help;
parse(["-h" | _], _) -> help;
parse(["--version" | _], _) -> version;
parse(["--" | Paths], Parsed) -> parse([], lists:foldl(fun path/2, Parsed, Paths));
parse(["--dry-run" | T], Parsed) -> parse(T, Parsed#{dry_run := true});
parse(["--unmark" | T], Parsed) -> parse(T, action(unmark, Parsed));
parse(["--info" | T], Parsed) -> parse(T, action(info, Parsed));
parse(["--" ++ _ = Option | T], Parsed) ->
    case {string:split(Option, "="), T} of
        {[Name, Value], _} -> parse(T, option(Name, Value, Parsed));
        {[Name], [Value | T1]} -> parse(T1, option(Name, Value, Parsed));
        {[Name], []} -> option(Name, none, Parsed)
    end;
parse([Path | T], Parsed) -> parse(T, path(Path, Parsed)).

path(Path, #{paths := Paths} = Parsed) -> Parsed#{paths := Paths ++ [Path]}.

action(Action, #{action := Other}) when Action =/= Other ->
    throw({usage, "only one of --profile, --unmark and --info makes sense"});
action(Action, Parsed) -> Parsed#{action => Action}.

option(Name, none, _) when Name =:= "--profile"; Name =:= "--only"; Name =:= "--except"; Name =:= "--behaviours";
                           Name =:= "--format" -> throw({usage, [Name, " needs a value"]});
option("--profile", "callbacks", Parsed) -> action({mark, callbacks}, Parsed);
option("--profile", "all", Parsed) -> action({mark, all}, Parsed);
option("--profile", "none", Parsed) -> action(unmark, Parsed);
option("--profile", Value, _) -> throw({usage, ["there is no profile ", plain(Value), ": callbacks, all or none"]});
option("--only", Value, #{only := L} = Parsed) -> Parsed#{only := [pattern(Value) | L]};
option("--except", Value, #{except := L} = Parsed) -> Parsed#{except := [pattern(Value) | L]};
option("--behaviours", Value, #{behaviours := L} = Parsed) -> Parsed#{behaviours := [Value | L]};
option("--format", "text", Parsed) -> Parsed#{format := text};
option("--format", "json", Parsed) -> Parsed#{format := json};
option("--format", Value, _) -> throw({usage, ["there is no format ", plain(Value), ": text or json"]});
option(Name, _, _) -> throw({usage, ["there is no option ", plain(Name)]}).

pattern(Text) -> hd(scope_mark:patterns([unicode:characters_to_binary(Text)])).

done(#{paths := Paths, dry_run := DryRun, format := Format, action := Action} = Parsed) ->
    {Missing, Files} = found(Paths),
    Do = case Action of
        unmark -> fun(F) -> scope_mark_files:unmark(F, DryRun) end;
        info -> fun scope_mark_files:info/1;
        {mark, Profile} ->
            {Unread, Others} = found(maps:get(behaviours, Parsed)),
            Unread =:= [] orelse throw({usage, ["--behaviours ", plain(maps:get(path, hd(Unread))), " cannot be read"]}),
            Options = #{profile => Profile, only => maps:get(only, Parsed), except => maps:get(except, Parsed),
                        behaviours => scope_mark_files:behaviours(Others ++ Files)},
            fun(F) -> scope_mark_files:mark(F, Options, DryRun) end
    end,
    Outcomes = Missing ++ [outcome(F, O) || {F, O} <- lists:zip(Files, scope_mark_files:each(Do, Files))],
    print(Format, Action, DryRun, Outcomes),
    case [failed || #{status := failed} <- Outcomes] of
        [] -> 0;
        _ -> 1
    end.

outcome(Path, {error, Reason}) -> #{path => Path, status => failed, reason => Reason};
outcome(_, Outcome) -> Outcome.

found(Paths) ->
    Found = [{P, scope_mark_files:find(P)} || P <- Paths],
    {[#{path => P, status => failed, reason => R} || {P, {error, R}} <- Found],
     lists:append([Files || {_, {ok, Files}} <- Found])}.

print(Format, Action, DryRun, Outcomes) ->
    [complain([plain(P), ": ", plain(unicode:characters_to_list(scope_mark:format_error(R)))])
     || #{status := failed, path := P, reason := R} <- Outcomes],
    case Format of
        json -> io:put_chars([json(document(Action, DryRun, Outcomes)), "\n"]);
        text -> text(Action, DryRun, Outcomes)
    end.

text(info, _, Outcomes) ->
    [io:put_chars([plain(P), ": ", described(I), "\n"]) || #{path := P, info := I} <- Outcomes],
    ok;
text(_, DryRun, Outcomes) ->
    #{functions := F, markers := M} = Totals = totals(Outcomes),
    What = case DryRun of true -> "would be "; false -> "" end,
    Counts = [[", ", n(maps:get(S, Totals)), " ", atom_to_list(S)] || S <- [unmarked, unchanged, skipped, failed],
                                                                   maps:get(S, Totals) > 0],
    io:put_chars([What, "marked ", n(maps:get(marked, Totals)), " modules", Counts, "; now ", n(F), " functions and ",
                  n(M), " markers\n"]),
    case unknown(Outcomes) of
        [] -> ok;
        Names -> complain(["callbacks of these behaviours are not marked, because their modules were not found (--behaviours DIR): ",
                           lists:join(", ", [plain(B) || B <- Names])])
    end.

described(#{marked := false}) -> "not marked";
described(#{profile := P, functions := F, markers := M}) ->
    ["profile ", plain(P), ", ", n(F), " functions, ", n(M), " markers"].

unknown(Outcomes) ->
    lists:usort(lists:append([B || #{info := #{unknown_behaviours := B}} <- Outcomes])).

totals(Outcomes) ->
    Zero = #{marked => 0, unmarked => 0, unchanged => 0, skipped => 0, failed => 0, functions => 0, markers => 0},
    lists:foldl(fun(#{status := Status} = O, Acc) ->
        #{functions := F, markers := M} = maps:get(info, O, #{functions => 0, markers => 0}),
        Add = fun(K, N, A) -> A#{K := maps:get(K, A) + N} end,
        Add(Status, 1, Add(functions, F, Add(markers, M, Acc)))
    end, Zero, Outcomes).

document(Action, DryRun, Outcomes) ->
    {Did, Profile} = case Action of {mark, P} -> {<<"mark">>, atom_to_binary(P)}; A -> {atom_to_binary(A), null} end,
    Totals = totals(Outcomes),
    [{schema, 1}, {action, Did}, {profile, Profile}, {dry_run, DryRun}, {version, list_to_binary(vsn())},
     {totals, [{K, maps:get(K, Totals)} || K <- [marked, unmarked, unchanged, skipped, failed, functions, markers]]},
     {unknown_behaviours, {list, unknown(Outcomes)}},
     {files, {list, [entry(O) || O <- Outcomes]}}].

entry(#{path := Path, status := Status} = O) ->
    Info = maps:get(info, O, #{}),
    Reason = case O of #{reason := R} -> unicode:characters_to_binary(scope_mark:format_error(R)); _ -> null end,
    [{path, text_of(Path)}, {status, atom_to_binary(Status)}, {reason, Reason}, {module, maps:get(module, Info, null)},
     {profile, maps:get(profile, Info, null)}, {functions, maps:get(functions, Info, 0)},
     {callbacks, maps:get(callbacks, Info, null)}, {markers, maps:get(markers, Info, 0)}].

json([{_, _} | _] = Pairs) ->
    [${, lists:join(",", [[json(atom_to_binary(K)), $:, json(V)] || {K, V} <- Pairs]), $}];
json({list, L}) -> [$[, lists:join(",", [json(E) || E <- L]), $]];
json(N) when is_integer(N) -> integer_to_list(N);
json(A) when is_atom(A) -> atom_to_list(A);
json(Text) -> [$", [json_char(C) || C <- characters(Text)], $"].

json_char($") -> "\\\"";
json_char($\\) -> "\\\\";
json_char(C) when C < 32; C >= 127, C < 160; C =:= 16#2028; C =:= 16#2029 -> io_lib:format("\\u~4.16.0b", [C]);
json_char(C) -> C.

text_of(Path) -> unicode:characters_to_binary(characters(Path)).

%% Names come from strangers: nothing in them moves a cursor.
plain(Text) ->
    [case C of
        _ when C < 32; C >= 127, C < 160 -> io_lib:format("\\x~2.16.0b", [C]);
        _ when C >= 16#200b, C =< 16#200f; C >= 16#2028, C =< 16#202e; C >= 16#2066, C =< 16#2069 ->
            io_lib:format("\\x{~.16b}", [C]);
        _ -> C
     end || C <- characters(Text)].

characters(Text) ->
    case unicode:characters_to_list(Text) of
        L when is_list(L) -> L;
        _ when is_binary(Text) -> binary_to_list(Text);
        _ -> "?"
    end.

%% 1234567 as 1,234,567.
n(N) -> n(lists:reverse(integer_to_list(N)), []).

n([A, B, C, D | T], Acc) -> n([D | T], [$,, C, B, A | Acc]);
n(Rest, Acc) -> lists:reverse(Rest, Acc).

complain(Text) -> io:put_chars(standard_error, ["scope-mark: ", Text, "\n"]).

%% The same as in scope_mark.app.src: an escript does not always have its application file.
vsn() -> "0.1.0".
