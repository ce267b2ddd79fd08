%% SPDX-License-Identifier: Apache-2.0
%% Which functions are marked: the behaviours of a module, their callbacks, and patterns.
-module(scope_mark_select).
-export([callbacks/3, behaviours/1, defines/1, pattern/1, matches/3]).
-export_type([pattern/0]).

-type fa() :: scope_mark_code:fa().
-type glob() :: [binary()].
-opaque pattern() :: {glob(), glob(), arity() | any}.

%% The callbacks among a module's exports, and behaviours of which nobody knows the callbacks.
-spec callbacks([binary()], [fa()], #{binary() => [fa()]}) -> {#{fa() => true}, [binary()]}.
callbacks(Behaviours, Exports, Known) ->
    Unknown = [B || B <- Behaviours, not is_map_key(B, Known)],
    Wanted = lists:append([expanded(maps:get(B, Known, []), Exports) || B <- Behaviours]),
    Exported = maps:from_keys(Exports, true),
    {maps:from_keys([F || F <- Wanted, is_map_key(F, Exported), not scope_mark_known:is_loop(F)], true), Unknown}.

%% 'StateName'/N stands for the module's state functions: its exports of that arity that are no callback by name.
expanded(Callbacks, Exports) ->
    {States, Named} = lists:partition(fun({F, _}) -> F =:= <<"StateName">> end, Callbacks),
    ByEvent = lists:member({<<"handle_event">>, 4}, Exports),
    Arities = [A || {_, A} <- States, not ByEvent],
    Named ++ [E || {F, A} = E <- Exports, lists:member(A, Arities), F =/= <<"start_link">>, F =/= <<"start">>].

%% Behaviours that a module names in its attributes. An implementation of a protocol is no callback: it is called as often
%% as the data is touched.
-spec behaviours([{binary(), scope_mark_etf:term_()}]) -> [binary()].
behaviours(Attributes) ->
    Protocols = [P || {<<"__impl__">>, Pairs} <- Attributes, is_list(Pairs),
                      {tuple, [{atom, <<"protocol">>}, {atom, P}]} <- Pairs],
    Named = [B || {Key, Names} <- Attributes, Key =:= <<"behaviour">> orelse Key =:= <<"behavior">>,
                  is_list(Names), {atom, B} <- Names],
    lists:usort(Named) -- Protocols.

%% The callbacks in the literals of a module's behaviour_info/1: lists of {Name, Arity}. The module is not run.
-spec defines([scope_mark_etf:term_()]) -> [fa()].
defines(Literals) ->
    lists:usort([{F, A} || L <- Literals, is_list(L), {tuple, [{atom, F}, A]} <- L, is_integer(A), A >= 0, A =< 255]).

%% MODULE, MODULE:FUNCTION or MODULE:FUNCTION/ARITY, each with * for anything.
-spec pattern(binary()) -> pattern().
pattern(Text) ->
    {M, Rest} = cut(Text, <<":">>),
    {F, A} = cut(Rest, <<"/">>),
    {glob(M), glob(F), arity(A, Text)}.

cut(Text, At) ->
    case binary:split(Text, At) of
        [Head, Tail] -> {Head, Tail};
        [Head] -> {Head, <<"*">>}
    end.

arity(<<"*">>, _) -> any;
arity(Digits, Text) ->
    try binary_to_integer(Digits) of
        A when A >= 0, A =< 255 -> A;
        _ -> throw({bad_pattern, Text})
    catch
        error:badarg -> throw({bad_pattern, Text})
    end.

glob(Text) -> binary:split(Text, <<"*">>, [global]).

-spec matches(binary(), fa(), [pattern()]) -> boolean().
matches(Module, {F, A}, Patterns) ->
    Names = case Module of
        <<"Elixir.", Short/binary>> -> [Module, Short];
        _ -> [Module]
    end,
    lists:any(fun({Mg, Fg, Ar}) ->
        (Ar =:= any orelse Ar =:= A) andalso fits(F, Fg) andalso lists:any(fun(N) -> fits(N, Mg) end, Names)
    end, Patterns).

fits(Name, [Exact]) -> Name =:= Exact;
fits(Name, [First | Parts]) ->
    Size = byte_size(First),
    case Name of
        <<First:Size/binary, Rest/binary>> -> between(Rest, Parts);
        _ -> false
    end.

%% Each part at its first place, the last one at the end.
between(Rest, [Last]) ->
    Size = byte_size(Last),
    Size =< byte_size(Rest) andalso binary:part(Rest, byte_size(Rest) - Size, Size) =:= Last;
between(Rest, [<<>> | Parts]) -> between(Rest, Parts);
between(Rest, [Part | Parts]) ->
    case binary:split(Rest, Part) of
        [_, Tail] -> between(Tail, Parts);
        [_] -> false
    end.
