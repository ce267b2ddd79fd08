%% SPDX-License-Identifier: Apache-2.0
%% Marks compiled code. Everything here takes and gives the contents of a .beam file; no code of it is loaded or run, no
%% atom is made of its names. README.md has the contract of the marker.
-module(scope_mark).
-export([mark/2, unmark/1, info/1, behaviour/1, patterns/1, format_error/1, version/0]).
-export([init/1]).
-export_type([options/0, info/0, reason/0]).

-include("scope_mark.hrl").

-type options() :: #{
    profile := none | callbacks | all,
    only => [scope_mark_select:pattern()],
    except => [scope_mark_select:pattern()],
    behaviours => #{binary() => [scope_mark_code:fa()]}   %% beside those of OTP and Elixir
}.
-type info() :: #{
    module := binary(),
    marked := boolean(),
    profile => binary(),
    functions := non_neg_integer(),                       %% with an entry marker
    callbacks => non_neg_integer(),                       %% of them
    markers := non_neg_integer(),
    kinds => #{atom() => pos_integer()},
    unknown_behaviours => [binary()]
}.
-type reason() :: term().

-define(VERSION, 1).
-define(BIFS, #{
    callback => {<<"erts_debug">>, <<"flat_size">>, 1},
    function => {<<"erts_internal">>, <<"cmp_term">>, 2}
}).

%% The version of the marker.
-spec version() -> pos_integer().
version() -> ?VERSION.

%% The file with markers as the options want them, whatever it was marked with before; `unchanged' if it is that already.
-spec mark(binary(), options()) -> {ok, binary(), info()} | {unchanged, info()} | {error, reason()}.
mark(Bin, Options) ->
    guarded(fun() ->
        Original = original(Bin),
        {Marked, Info} = marked(Original, Options),
        case Marked of
            Bin -> {unchanged, Info};
            _ -> {ok, Marked, Info}
        end
    end).

%% The file as it was before it was marked, byte for byte.
-spec unmark(binary()) -> {ok, binary()} | unchanged | {error, reason()}.
unmark(Bin) ->
    guarded(fun() ->
        case original(Bin) of
            Bin -> unchanged;
            Original -> {ok, Original}
        end
    end).

%% What a file says about its markers.
-spec info(binary()) -> {ok, info()} | {error, reason()}.
info(Bin) ->
    guarded(fun() ->
        Chunks = scope_mark_iff:read(plain(Bin)),
        Module = module(Chunks),
        case [Pairs || {<<"scope_mark">>, Pairs} <- attributes(Chunks), is_list(Pairs)] of
            [] -> {ok, #{module => Module, marked => false, functions => 0, markers => 0}};
            [Pairs | _] ->
                Info = maps:from_list([{K, V} || {tuple, [{atom, K}, V]} <- Pairs]),
                #{<<"profile">> := {atom, Profile}, <<"functions">> := F, <<"markers">> := M} = Info,
                {ok, #{module => Module, marked => true, profile => Profile, functions => F, markers => M}}
        end
    end).

%% A module that defines a behaviour, with its callbacks.
-spec behaviour(binary()) -> {ok, binary(), [scope_mark_code:fa()]} | none | {error, reason()}.
behaviour(Bin) ->
    guarded(fun() ->
        Chunks = scope_mark_iff:read(plain(Bin)),
        Atoms = scope_mark_atoms:read(chunk(<<"AtU8">>, Chunks)),
        Exports = scope_mark_code:exports(chunk(<<"ExpT">>, Chunks), Atoms),
        case lists:member({<<"behaviour_info">>, 1}, Exports) of
            false -> none;
            true -> {ok, scope_mark_atoms:name(1, Atoms), scope_mark_select:defines(behaviour_literals(Chunks, Atoms))}
        end
    end).

%% Patterns as options take them. Throws {bad_pattern, Text}.
-spec patterns([binary()]) -> [scope_mark_select:pattern()].
patterns(Texts) -> [scope_mark_select:pattern(T) || T <- Texts].

%% A plugin of rebar3 is called by the name of its application.
-spec init(term()) -> term().
init(State) -> scope_mark_rebar3:init(State).

guarded(Do) ->
    try
        Do()
    catch
        throw:Reason -> {error, Reason};
        error:_ -> {error, {bad_file, unreadable}}
    end.

original(<<16#1f, 16#8b, _/binary>> = Compressed) ->
    Plain = plain(Compressed),
    case original(Plain) of
        Plain -> Compressed;
        Original -> Original
    end;
original(Bin) ->
    case scope_mark_undo:original(Bin) of
        {ok, Original} -> Original;
        none ->
            Chunks = scope_mark_iff:read(Bin),
            lists:keymember(<<"scope_mark">>, 1, attributes(Chunks)) andalso throw(stripped_after_marking),
            Bin
    end.

plain(<<16#1f, 16#8b, _/binary>> = Compressed) -> scope_mark_iff:inflate(Compressed, 31);
plain(Bin) -> Bin.

marked(Original, #{profile := none}) ->
    {Original, #{module => module(scope_mark_iff:read(plain(Original))), marked => false, functions => 0, markers => 0}};
marked(Original, Options) ->
    Plain = plain(Original),
    Chunks = scope_mark_iff:read(Plain),
    lists:keymember(<<"scope_mark">>, 1, attributes(Chunks)) andalso throw(stripped_after_marking),
    case placed(Chunks, Options) of
        {none, Info} -> {Original, Info};
        {Pieces, Info} ->
            Edited = scope_mark_undo:edited(Plain, Pieces),
            {ok, Plain} = scope_mark_undo:original(Edited),
            case Plain of
                Original -> {Edited, Info};
                _ -> {scope_mark_undo:whole(Original, Edited), Info}
            end
    end.

%% The pieces of all chunks behind the header, or `none' if there is nothing to mark.
placed(Chunks, #{profile := Profile} = Options) ->
    AtomsOld = chunk(<<"AtU8">>, Chunks),
    Atoms = scope_mark_atoms:read(AtomsOld),
    Module = scope_mark_atoms:name(1, Atoms),
    scope_mark_known:is_preloaded(Module) andalso throw(preloaded),
    ImportsOld = chunk(<<"ImpT">>, Chunks),
    Imports = scope_mark_code:imports(ImportsOld, Atoms),
    {Callbacks, Unknown, Dispatches} = roles(Chunks, Atoms, Options),
    {Indexes, Added, Atoms1} = imports(Profile, Imports, Atoms),
    Lines = scope_mark_iff:find(<<"Line">>, Chunks),
    {Head, [Before | Functions]} = scope_mark_code:read(chunk(<<"Code">>, Chunks), Atoms),
    Targets = scope_mark_tails:targets(Functions, Module, Imports),
    Context = #{module => Module, lines => Lines =/= none, imports => Indexes, targets => Targets,
                graph => scope_mark_tails:graph(Functions, Targets)},
    Choose = chooser(Module, Callbacks, Dispatches, Options),
    Placed = [scope_mark_place:function(F, maps:merge(Context, Choose({F#function.name, F#function.arity})))
              || F <- Functions],
    Kinds = lists:foldl(fun({_, K}, Acc) -> maps:merge_with(fun(_, A, B) -> A + B end, K, Acc) end, #{}, Placed),
    Info = summary(Module, Profile, maps:remove(line, Kinds), Unknown, [F || F <- maps:keys(Callbacks),
                                                      maps:get(class, Choose(F)) =:= callback]),
    case Info of
        #{markers := 0} -> {none, Info#{marked := false}};
        _ ->
            Code = [{keep, Head} | [{keep, B} || {_, _, B} <- Before#function.code]] ++
                lists:append([P || {P, _} <- Placed]),
            New = #{<<"AtU8">> => atom_pieces(AtomsOld, Atoms1), <<"ImpT">> => import_pieces(ImportsOld, Added),
                    <<"Code">> => Code, <<"Attr">> => attribute_pieces(scope_mark_iff:find(<<"Attr">>, Chunks), Info),
                    <<"Line">> => line_pieces(Lines, maps:get(line, Kinds, 0))},
            {file(Chunks, New), Info}
    end.

%% The callbacks of a module, behaviours that are not known, and whether handlers in it may stand around callbacks.
roles(Chunks, Atoms, Options) ->
    Exports = scope_mark_code:exports(chunk(<<"ExpT">>, Chunks), Atoms),
    Known = maps:merge(maps:get(behaviours, Options, #{}), scope_mark_known:behaviours()),
    Attributes = attributes(Chunks),
    Behaviours = scope_mark_select:behaviours(Attributes),
    {Callbacks, Unknown} = scope_mark_select:callbacks(Behaviours, Exports, Known),
    Defines = lists:member({<<"behaviour_info">>, 1}, Exports)
        andalso not lists:keymember(<<"__protocol__">>, 1, Attributes),
    Dispatches = map_size(Callbacks) > 0 orelse Defines,
    {Callbacks, Unknown, Dispatches}.

%% What is marked in a function: its class, that of its handlers, and whether its return is what its caller waits for.
chooser(Module, Callbacks, Dispatches, #{profile := Profile} = Options) ->
    Only = maps:get(only, Options, []),
    Except = maps:get(except, Options, []),
    Rest = case Profile of all -> function; callbacks -> none end,
    fun(Function) ->
        Chosen = (Only =:= [] orelse scope_mark_select:matches(Module, Function, Only))
            andalso not scope_mark_select:matches(Module, Function, Except)
            andalso not scope_mark_known:is_unmarkable(Function),
        Class = case is_map_key(Function, Callbacks) of true -> callback; false -> Rest end,
        Handlers = case Dispatches of true -> callback; false -> Rest end,
        case Chosen of
            true -> #{class => Class, handlers => Handlers, returns => scope_mark_known:returns(Function)};
            false -> #{class => none, handlers => none, returns => false}
        end
    end.

summary(Module, Profile, Kinds, Unknown, Callbacks) ->
    #{module => Module, marked => true, profile => atom_to_binary(Profile),
      functions => maps:get(entry, Kinds, 0), callbacks => length(Callbacks),
      markers => lists:sum(maps:values(Kinds)), kinds => Kinds, unknown_behaviours => Unknown}.

%% Where the markers' BIFs are in the imports: those that are there already keep their places.
imports(Profile, Imports, Atoms) ->
    Classes = case Profile of all -> [callback, function]; callbacks -> [callback] end,
    lists:foldl(fun(Class, {Indexes, Added, Atoms0}) ->
        {M, F, A} = Bif = maps:get(Class, ?BIFS),
        case index(Bif, tuple_to_list(Imports), 0) of
            none ->
                {Mi, Atoms1} = scope_mark_atoms:index(M, Atoms0),
                {Fi, Atoms2} = scope_mark_atoms:index(F, Atoms1),
                N = tuple_size(Imports) + byte_size(Added) div 12,
                {Indexes#{Class => N}, <<Added/binary, Mi:32, Fi:32, A:32>>, Atoms2};
            N -> {Indexes#{Class => N}, Added, Atoms0}
        end
    end, {#{}, <<>>, Atoms}, Classes).

index(Bif, [Bif | _], N) -> N;
index(Bif, [_ | T], N) -> index(Bif, T, N + 1);
index(_, [], _) -> none.

atom_pieces(<<Count:4/binary, Rest/binary>> = Old, Atoms) ->
    {NewCount, Added} = scope_mark_atoms:add(Old, Atoms),
    [{put, Count, NewCount}, {keep, Rest}, {put, <<>>, Added}].

import_pieces(<<Count:32, Rest/binary>>, Added) ->
    [{put, <<Count:32>>, <<(Count + byte_size(Added) div 12):32>>}, {keep, Rest}, {put, <<>>, Added}].

%% The loader counts line instructions (lib/compiler/src/beam_asm.erl, build_line_table).
line_pieces(none, _) -> none;
line_pieces(<<Head:8/binary, Count:32, Rest/binary>>, More) ->
    [{keep, Head}, {put, <<Count:32>>, <<(Count + More):32>>}, {keep, Rest}];
line_pieces(_, _) -> throw({bad_file, lines}).

attribute_pieces(Old, #{profile := Profile, functions := Functions, markers := Markers}) ->
    Element = scope_mark_etf:attribute(<<"scope_mark">>, [
        {<<"version">>, ?VERSION}, {<<"profile">>, Profile}, {<<"functions">>, Functions}, {<<"markers">>, Markers}]),
    case Old of
        none -> [{put, <<>>, <<131, 108, 1:32, Element/binary, 106>>}];
        <<>> -> [{put, <<>>, <<131, 108, 1:32, Element/binary, 106>>}];
        _ ->
            {{Head, NewHead}, {Tail, NewTail}} = scope_mark_etf:append(Old, Element),
            Keep = binary:part(Old, byte_size(Head), byte_size(Old) - byte_size(Head) - byte_size(Tail)),
            [{put, Head, NewHead}, {keep, Keep}, {put, Tail, NewTail}]
    end.

%% The file with the new pieces of some chunks. Attributes are the only chunk that may have been missing.
file(Chunks, New) ->
    Old = [case New of
        #{Id := Pieces} -> chunk_pieces(Id, {Data, Padding}, Pieces);
        _ -> [{keep, [Id, <<(byte_size(Data)):32>>, Data]}, {put, Padding, scope_mark_iff:padding(byte_size(Data))}]
    end || {Id, Data, Padding} <- Chunks],
    Missing = [chunk_pieces(Id, none, Pieces) || Id <- [<<"Attr">>], #{Id := Pieces} <- [New],
               scope_mark_iff:find(Id, Chunks) =:= none],
    lists:append(Old ++ Missing).

chunk_pieces(Id, Was, Pieces) ->
    Size = iolist_size([case P of {keep, B} -> B; {put, _, B} -> B end || P <- Pieces]),
    {Header, Padding} = case Was of
        none -> {<<>>, <<>>};
        {Data, Old} -> {<<Id/binary, (byte_size(Data)):32>>, Old}
    end,
    [{put, Header, <<Id/binary, Size:32>>}] ++ Pieces ++ [{put, Padding, scope_mark_iff:padding(Size)}].

module(Chunks) ->
    scope_mark_atoms:name(1, scope_mark_atoms:read(chunk(<<"AtU8">>, Chunks))).

chunk(Id, Chunks) ->
    case scope_mark_iff:find(Id, Chunks) of
        none when Id =:= <<"AtU8">> -> throw(no_utf8_atoms);
        none -> throw({bad_file, {no_chunk, Id}});
        Data -> Data
    end.

attributes(Chunks) ->
    case scope_mark_iff:find(<<"Attr">>, Chunks) of
        Data when Data =:= none; Data =:= <<>> -> [];
        Data ->
            case scope_mark_etf:read(Data) of
                Pairs when is_list(Pairs) -> [{K, V} || {tuple, [{atom, K}, V]} <- Pairs];
                _ -> throw({bad_file, attributes})
            end
    end.

%% The literals that behaviour_info/1 loads.
behaviour_literals(Chunks, Atoms) ->
    {_, Functions} = scope_mark_code:read(chunk(<<"Code">>, Chunks), Atoms),
    Numbers = [N || #function{name = <<"behaviour_info">>, arity = 1, code = Code} <- Functions,
                    {_, Args, _} <- Code, {literal, N} <- Args],
    All = literals(scope_mark_iff:find(<<"LitT">>, Chunks)),
    [scope_mark_etf:read(lists:nth(N + 1, All)) || N <- lists:usort(Numbers)].

literals(none) -> [];
literals(<<0:32, Plain/binary>>) -> literal_list(Plain);
literals(<<_:32, Compressed/binary>>) -> literal_list(scope_mark_iff:inflate(Compressed, 15)).

literal_list(<<_:32, Rest/binary>>) ->
    [Term || <<Size:32, Term:Size/binary>> <= Rest].

%% The cause of an error, in words.
-spec format_error(reason()) -> iodata().
format_error({bad_file, no_beam_file}) -> "it is no .beam file";
format_error({bad_file, truncated}) -> "it ends too early: the file is not complete";
format_error({bad_file, trailing_bytes}) -> "it has bytes behind its end";
format_error({bad_file, too_large}) -> "it is larger than 128 MiB";
format_error({bad_file, {no_chunk, Id}}) -> io_lib:format("it has no chunk ~0p", [binary_to_list(Id)]);
format_error({bad_file, {chunk_twice, Id}}) -> io_lib:format("it has the chunk ~0p twice", [binary_to_list(Id)]);
format_error({bad_file, What}) -> io_lib:format("it is damaged (~0p)", [What]);
format_error({bad_code, What}) -> io_lib:format("its code is damaged (~0p)", [What]);
format_error({newer_opcode, Op, Known}) ->
    io_lib:format("it has instruction ~w, which is newer than OTP ~w: a newer scope-mark is needed", [Op, Known]);
format_error({unknown_operand, Kind}) ->
    io_lib:format("it has an operand of kind ~w, which is not known: a newer scope-mark is needed", [Kind]);
format_error({unknown_code_format, N}) ->
    io_lib:format("its code has format ~w, which is not known: a newer scope-mark is needed", [N]);
format_error(no_utf8_atoms) -> "it was compiled by OTP 19 or older (no chunk AtU8)";
format_error(preloaded) -> "the emulator has its own copy of this module, so the file is not used";
format_error(stripped_after_marking) ->
    "it was stripped after it was marked, so its original is lost: build it anew, or strip before marking";
format_error(changed_after_marking) -> "it was changed after it was marked, so its original is lost: build it anew";
format_error(newer_marking) -> "a newer scope-mark has marked it: unmark it with that one";
format_error({bad_pattern, Text}) ->
    io_lib:format("the pattern ~0p is not MODULE, MODULE:FUNCTION or MODULE:FUNCTION/ARITY", [Text]);
format_error({untrusted, Path, {owner, Uid}}) ->
    io_lib:format("~0tp belongs to user ~w, who can lead what is written elsewhere: run it as the folder's owner", [Path, Uid]);
format_error({untrusted, Path, writable}) ->
    io_lib:format("users other than its owner may write to ~0tp and lead what is written elsewhere: run it as the "
                  "folder's owner, after chmod go-w", [Path]);
format_error({untrusted, Path, link}) ->
    io_lib:format("~0tp is a link in a folder that every user may write to, or one of too many: name the folder itself", [Path]);
format_error({too_much, names}) -> "more than 1,000,000 files and folders are below it: name its parts";
format_error({too_much, bytes}) -> "more than 8 GiB of .beam files are below it: name its parts";
format_error(symbolic_link) -> "it is a symbolic link: name the file itself";
format_error(no_regular_file) -> "it is no regular file";
format_error({file, Posix}) when is_atom(Posix) -> file:format_error(Posix);
format_error(Reason) -> io_lib:format("~0p", [Reason]).
