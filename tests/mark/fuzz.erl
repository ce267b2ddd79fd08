%% SPDX-License-Identifier: Apache-2.0
%% Mutates .beam files and gives them to scope_mark: an error, or a file that can be unmarked and that loads if its
%% mutated original does.
%%
%%     erl -noshell -pa EBIN -run fuzz main FIRST CASES FILE...
%%
%% A case is its number: it seeds all that is drawn. Prints {case_failed, N, Why} for each that went wrong, and {totals, Map}.
-module(fuzz).
-export([main/1, loader/0]).

main([First, Cases | Paths]) ->
    Files = [read(P) || P <- Paths],
    Marked = [M || F <- Files, {ok, M, _} <- [scope_mark:mark(F, #{profile => all})]],
    From = list_to_integer(First),
    Numbers = lists:seq(From, From + list_to_integer(Cases) - 1),
    ok = logger:set_primary_config(level, none),
    register(loader, spawn_link(fun() -> asked(none) end)),
    Results = lists:zip(Numbers, scope_mark_files:each(fun(N) -> one(N, list_to_tuple(Files ++ Marked)) end, Numbers)),
    [io:format("~0p.~n", [{case_failed, N, R}]) || {N, R} <- Results, not is_atom(R)],
    Count = fun({_, R}, Acc) ->
        Key = case R of _ when is_atom(R) -> R; _ -> failed end,
        maps:update_with(Key, fun(C) -> C + 1 end, 1, Acc)
    end,
    io:format("~0p.~n", [{totals, lists:foldl(Count, #{failed => 0}, Results)}]),
    halt().

read(Path) ->
    {ok, Bin} = file:read_file(Path),
    Bin.

one(N, Files) ->
    _ = rand:seed(exsss, N),
    Damaged = mutated(rand:uniform(3), element(rand:uniform(tuple_size(Files)), Files)),
    Bin = case rand:uniform(5) of 1 -> Damaged; _ -> sized(Damaged) end,
    Answers = [answer(scope_mark:info(Bin)), answer(scope_mark:behaviour(Bin)), answer(scope_mark:unmark(Bin))],
    Profile = case N rem 2 of 0 -> all; 1 -> callbacks end,
    case {[T || T <- Answers, T =/= ok], scope_mark:mark(Bin, #{profile => Profile})} of
        {[], {error, _}} -> refused;
        {[], {unchanged, _}} -> unchanged;
        {[], {ok, Marked, #{marked := true}}} -> good(Bin, Marked, Profile);
        {[], {ok, _, _}} -> unmarked;
        {Wrong, _} -> {answers, Wrong}
    end.

answer(unchanged) -> ok;
answer(none) -> ok;
answer(Tuple) when element(1, Tuple) =:= ok -> ok;
answer({error, Reason}) ->
    true = is_list(unicode:characters_to_list(scope_mark:format_error(Reason))),
    ok.

good(Bin, Marked, Profile) ->
    {ok, Original} = case scope_mark:unmark(Bin) of unchanged -> {ok, Bin}; Ok -> Ok end,
    case {scope_mark:unmark(Marked), scope_mark:mark(Marked, #{profile => Profile}), loads(Original), loads(Marked)} of
        {{ok, Original}, {unchanged, _}, Same, Same} when Same -> loads;
        {{ok, Original}, {unchanged, _}, false, _} -> original_does_not_load;
        Wrong -> {marked, element(1, element(1, Wrong)), element(1, element(2, Wrong)), element(3, Wrong), element(4, Wrong)}
    end.

%% Loaded in another VM: the loader of one does not survive all code that is damaged.
loads(Bin) ->
    loader ! {self(), Bin},
    receive {loads, Answer} -> Answer end.

asked(Port0) ->
    Port = case Port0 of none -> started(); _ -> Port0 end,
    receive
        {From, Bin} when is_pid(From) ->
            true = port_command(Port, Bin),
            receive
                {Port, {data, <<Answer>>}} -> From ! {loads, Answer =:= 1}, asked(Port);
                {Port, {exit_status, _}} -> From ! {loads, false}, asked(none)
            after 10000 ->
                {os_pid, Pid} = erlang:port_info(Port, os_pid),
                _ = os:cmd("kill -9 " ++ integer_to_list(Pid)),
                receive {Port, {exit_status, _}} -> ok end,
                From ! {loads, false},
                asked(none)
            end
    end.

started() ->
    Command = "erl -noinput -boot no_dot_erlang -pa '" ++ filename:dirname(code:which(?MODULE)) ++
        "' -run fuzz loader 2>/dev/null",
    open_port({spawn, Command}, [{packet, 4}, binary, exit_status]).

loader() ->
    ok = logger:set_primary_config(level, none),
    Port = open_port({fd, 0, 1}, [{packet, 4}, binary, eof]),
    answers(Port).

answers(Port) ->
    receive
        {Port, {data, Bin}} ->
            Loads = case beam_lib:info(Bin) of
                {error, _, _} -> false;
                Info -> is_reference(erlang:prepare_loading(proplists:get_value(module, Info), Bin))
            end,
            true = port_command(Port, <<(case Loads of true -> 1; false -> 0 end)>>),
            answers(Port);
        {Port, eof} -> halt()
    end.

mutated(0, Bin) -> Bin;
mutated(N, Bin) -> mutated(N - 1, mutation(rand:uniform(7), Bin, rand:uniform(byte_size(Bin)) - 1)).

mutation(1, Bin, At) -> binary:part(Bin, 0, max(At, 1));
mutation(2, Bin, At) -> replaced(Bin, At, 1, <<(rand:uniform(256) - 1)>>);
mutation(3, Bin, At) -> replaced(Bin, At, 1, <<(binary:at(Bin, At) bxor (1 bsl (rand:uniform(8) - 1)))>>);
mutation(4, Bin, At) -> replaced(Bin, At, 0, rand:bytes(rand:uniform(8)));
mutation(5, Bin, At) -> replaced(Bin, At, min(rand:uniform(64), byte_size(Bin) - At), <<>>);
mutation(6, Bin, At) ->
    Ids = [<<"Code">>, <<"AtU8">>, <<"ImpT">>, <<"ExpT">>, <<"LitT">>, <<"Attr">>, <<"Line">>, <<"ScMk">>],
    Id = lists:nth(rand:uniform(length(Ids)), Ids),
    case binary:match(Bin, Id) of
        {P, 4} -> replaced(Bin, min(P + 4 + rand:uniform(24), byte_size(Bin) - 1), 1, <<(At rem 256)>>);
        nomatch -> Bin
    end;
mutation(7, Bin, At) ->
    Size = min(rand:uniform(4), byte_size(Bin) - At),
    replaced(Bin, At, Size, binary:part(<<16#ffffffff:32>>, 0, Size)).

replaced(Bin, At, Size, New) ->
    <<Head:At/binary, _:Size/binary, Tail/binary>> = Bin,
    <<Head/binary, New/binary, Tail/binary>>.

%% The form's size made right again, so that more than the header is looked at.
sized(<<"FOR1", _:32, Rest/binary>>) -> <<"FOR1", (byte_size(Rest)):32, Rest/binary>>;
sized(Bin) -> Bin.
